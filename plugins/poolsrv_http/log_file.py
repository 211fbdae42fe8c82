"""The file of an access log: opened in each worker, opened again when it has been renamed."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from poolsrv import ConfigError, Worker, open_for_appending

from .access_log import Entry, combined, json_line, mask_address
from .forwarding import Origin
from .options import HttpOptions

__all__ = ["AccessLog"]


class AccessLog:
    """The access log of one listener.

    :param log: for what goes wrong with it.
    """

    def __init__(self, options: HttpOptions, log: logging.Logger) -> None:
        self._path = options.access_log
        self._masks = options.mask_addresses
        self._format: Callable[[Entry], str] = combined if options.access_log_format == "combined" else json_line
        self._log = log
        self._file: int | None = None
        self._has_failed = False

    def open(self, worker: Worker) -> None:
        """In a worker, before its first connection.

        :raises ConfigError: the file can't be opened.
        """
        if self._path is not None:
            try:
                self._file = _open(self._path)
            except OSError as error:
                raise ConfigError("access_log", f"{self._path} can't be opened: {error.strerror}") from None
            worker.on_reopen_logs(self._reopen)

    def _reopen(self) -> None:
        """The file has been renamed. Where a new one can't be opened the old one goes on."""
        assert self._path is not None
        assert self._file is not None
        try:
            fd = _open(self._path)
        except OSError as error:
            self._log.error("can't reopen the access log: %s; going on with the old file", error.strerror)
            return
        os.close(self._file)
        self._file = fd

    @property
    def is_open(self) -> bool:
        """Whether there is an access log."""
        return self._file is not None

    def write(self, entry: Entry) -> None:
        """Write a line. Only the first failure is logged."""
        if self._file is None:
            return
        try:
            os.write(self._file, self._format(entry).encode())
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                self._log.error("can't write the access log: %s", error.strerror)

    def address_of(self, origin: Origin) -> str:
        """The client's address as it stands in the log."""
        address = origin.endpoints.remote_address
        return mask_address(address) if self._masks else address


def _open(file: Path) -> int:
    """Open for appending; without waiting, should it be a pipe that no process reads.

    :raises OSError: it can't be opened.
    """
    try:
        return open_for_appending(str(file), 0o640)
    except OSError as error:
        standard = {"/dev/stdout": 1, "/dev/stderr": 2}.get(str(file))
        # A socket, as systemd has it, can't be opened; nor can another user's terminal or pipe.
        if error.errno not in (errno.ENXIO, errno.EACCES) or standard is None:
            raise
        return os.dup(standard)
