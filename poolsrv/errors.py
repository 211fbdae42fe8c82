"""Exceptions that pass from one part of poolsrv to another, or to a plugin."""


class PoolsrvError(Exception):
    """Base of all exceptions that poolsrv defines."""


class ConfigError(PoolsrvError):
    """An unusable value in the config.

    A plugin raises it from its ``__init__``. poolsrv then reports it with the file and the full key path, together with
    every other error of the file.

    :param key: the wrong option, relative to the plugin's own table (``"root"``, ``"limits.cpu"``); empty if no single
        option is to blame.
    :param message: what is wrong and what was expected, in one line.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)
        self.key = key
        self.message = message

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class StartError(PoolsrvError):
    """A failure at run time: an address in use, workers that can't start. The command line exits with 1."""


class LineTooLong(PoolsrvError):
    """``recv_line`` has read more than its limit without an end of line.

    Nothing has been taken from the buffer: the caller may answer and close, or ``recv`` the bytes.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"no end of line within {limit} byte{'s' if limit != 1 else ''}")
        self.limit = limit


class FrameTooLong(PoolsrvError):
    """``recv_until`` has read more than its limit without the separator.

    As with ``LineTooLong``, nothing has been taken from the buffer.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"no separator within {limit} byte{'s' if limit != 1 else ''}")
        self.limit = limit
