"""A small Redis server, as a poolsrv plugin: strings that expire, and a file from which they come back."""

from .plugin import Resp

__all__ = ["Resp"]
