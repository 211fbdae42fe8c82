"""Captures of failed runs, for `poolsrv replay`: what a program was given, and what became of it."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import msgspec

from poolsrv import Capture, CapturedSandbox, CaptureFolder, Sandbox, Worker

from ..cgi_header import CgiHeader
from ..options import Options
from .masking import Masking
from .records import Ended, reason_of

__all__ = ["Capturing"]

DELAY = 0.1  # seconds in which the rest of both outputs is read

_LIMIT_NAMES = {getattr(resource, name): name for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_NOFILE", "RLIMIT_NPROC")}


class Failed(Protocol):
    """What a capture is made of besides: a `Program`.

    :ivar body: the first part of what it had on its standard input.
    :ivar body_length: bytes of all of that.
    :ivar header: its CGI header; its output may still be read after its end.
    """

    body: bytes
    body_length: int
    header: CgiHeader | None


class Capturing:
    """The captures of one listener; made only with the option `capture`.

    :param limits: resource limits of programs.
    :param sandbox: of programs.
    :ivar body: bytes of a request's body that are kept.
    """

    def __init__(self, options: Options, masking: Masking, limits: Mapping[int, int], sandbox: Sandbox | None) -> None:
        assert options.capture is not None
        self.body = options.capture_body if options.protocol == "http" else 0
        self._options = options
        self._masking = masking
        self._limits = {_LIMIT_NAMES[number]: value for number, value in limits.items()}
        self._sandbox = None if sandbox is None else msgspec.convert(sandbox.arguments(), CapturedSandbox)
        self._folder = CaptureFolder(str(options.capture), options.capture_max)
        self._worker: Worker | None = None
        self._due: dict[str, Callable[[], None]] = {}  # by ID

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""
        self._folder.open(worker)
        self._worker = worker

    def close(self) -> None:
        """The worker ends: write everything at once from now on."""
        self._worker = None
        for run_id in list(self._due):
            self._keep_due(run_id)
        self._folder.close()

    def failed(self, ended: Ended, program: Failed) -> None:
        """A run has failed: capture it in a moment."""
        if ended.capture or not (run_id := self._folder.reserve()):
            return
        ended.id, ended.capture = run_id, self._folder.file_of(run_id)
        self._due[run_id] = partial(self._keep, ended, program)
        if self._worker is None:
            self._keep_due(run_id)
        else:
            self._worker.call_later(DELAY, partial(self._keep_due, run_id))

    def _keep_due(self, run_id: str) -> None:
        keep = self._due.pop(run_id, None)
        if keep is not None:
            keep()

    def _keep(self, ended: Ended, program: Failed) -> None:
        options, outcome, header = self._options, ended.outcome, program.header
        environment, masked = self._masking.environment(ended.environment)
        is_redirect = header is not None and header.local
        self._folder.keep(
            Capture(
                id=ended.id,
                at=time.time() - (time.monotonic() - ended.began),
                listener=ended.listener,
                program=ended.program,
                protocol="nph" if ended.nph and options.protocol == "http" else options.protocol,
                command=list(ended.argv),
                directory=ended.directory,
                request=self._masking.parameters(ended.request),
                client=ended.address,
                environment=environment,
                masked=masked,
                body=program.body,
                body_length=program.body_length,
                timeout=options.timeout,
                limits=self._limits,
                umask=options.umask,
                nice=options.nice,
                user=_user(options),
                sandbox=self._sandbox,
                returncode=ended.returncode,
                status=outcome.status if outcome is not None and not is_redirect else 0,
                reason=reason_of(ended),
                took=max(ended.took, 0.0),
                cpu=ended.cpu,
                header=[] if header is None else _lines(header),
                stderr=list(ended.last_lines),
            ),
            lost=ended.capture_lost,
        )


def _user(options: Options) -> str:
    """As `chown` writes it; "" for the server's user."""
    user = "" if options.user is None else str(options.user)
    return user if options.group is None else f"{user}:{options.group}"


def _lines(header: CgiHeader) -> list[str]:
    """The fields that go to the client; those for the server alone, and the status, are not among them."""
    if header.local:
        return [f"Location: {header.location}"]
    return [f"{name.decode()}: {value.decode('utf-8', 'surrogateescape')}" for name, value in header.fields]
