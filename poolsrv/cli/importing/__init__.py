"""``poolsrv import``: from the configs of inetd, xinetd and systemd's ``Accept=yes`` to a poolsrv.toml.

``files`` reads what the user names. ``xinetd``, ``inetd`` and ``socket_unit`` make a ``Service`` of each service in it,
with a note for everything that has no counterpart. ``document`` writes them as TOML.
"""
