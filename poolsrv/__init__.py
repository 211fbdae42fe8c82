"""poolsrv."""
