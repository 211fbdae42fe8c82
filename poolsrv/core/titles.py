"""Process titles, as `ps` and `top` show them: by setproctitle, which is optional; without it nothing happens."""

from __future__ import annotations


def set_title(title: str) -> None:
    """Show this process as ``"poolsrv: TITLE"``."""
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(f"poolsrv: {title}")
