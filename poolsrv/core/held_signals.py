"""Signals wait until a starting process handles them: by default they would end it, or stop it, or print a traceback.

The first thing that a server's process does, so this module imports nothing.
"""

import _signal  # type: ignore[import-not-found]

# TERM is not among a pool's: it ends one that hangs in an import. A terminal, or a service manager, sends the others to
# all processes of a server.
OF_A_POOL = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGTTIN, _signal.SIGTTOU)
OF_THE_SUPERVISOR = (*OF_A_POOL, _signal.SIGTERM)


def hold() -> None:
    """Have the supervisor's signals wait until ``signals.unblock``."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, OF_THE_SUPERVISOR)
