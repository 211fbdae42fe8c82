"""A Linux server that runs a pool of pre-forked workers, and lets plugins supply the protocol.

These are the names for plugins; see docs/plugins.md.
"""

from .children import PIPE, Child
from .connection import Connection
from .errors import ConfigError, LineTooLong
from .hookspecs import hookimpl
from .stream import Stream
from .worker import Worker

__all__ = ["PIPE", "Child", "ConfigError", "Connection", "LineTooLong", "Stream", "Worker", "hookimpl"]
