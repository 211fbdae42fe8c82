"""The commands: `command` in NAME.py is `poolsrv NAME`. `main.py` imports the one that is called."""
