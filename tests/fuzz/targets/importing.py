"""Configs of inetd, xinetd and systemd, for ``poolsrv import``.

The rules: what can't be understood is told with its file; nothing but ``BadSource`` is raised. The result is UTF-8 and
TOML, and ``poolsrv check`` accepts it, perhaps after listeners that it refuses have become comments.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import tomli

from poolsrv.cli.importing import trial
from poolsrv.cli.importing.document import Document
from poolsrv.cli.importing.files import read_services
from poolsrv.cli.importing.service import BadSource
from poolsrv.config import reader
from poolsrv.config.errors import ConfigErrors
from poolsrv.core.text import lines
from poolsrv.plugins import loader

from ..source import Source
from . import Target

NAMES = ("inetd.conf", "xinetd.conf", "x.socket")
_find_outside = re.compile(rb"(?:include|includedir)\s").search  # files that are not the input's own


def run(data: bytes) -> None:
    source = Source(data)
    name = source.choice(NAMES)
    text = source.rest()
    if _find_outside(text):
        return
    with tempfile.TemporaryDirectory(prefix="poolsrv-fuzz-") as folder:
        file = Path(folder) / name
        head, _, unit = text.partition(b"\0")
        file.write_bytes(head)
        if unit:
            (Path(folder) / "x@.service").write_bytes(unit)
        try:
            document = Document(read_services([file]))
        except BadSource as error:
            assert error.lines
            assert all(line.startswith(folder) for line in error.lines), error.lines
            return
        check_document(document, Path(folder) / "poolsrv.toml", str(file))


def check_document(document: Document, config: Path, name: str) -> None:
    for _ in range(len(document.names) + 1):
        text = document.text([name])
        assert lines(text) == text  # nothing is changed when it is printed
        tomli.loads(text)
        config.write_text(text, encoding="utf-8")
        if not document.served:
            return
        try:
            loader.load_plugins(reader.read(config))
        except ConfigErrors as errors:
            messages = [line.removeprefix(f"{config}: ") for line in str(errors).splitlines()]
            assert [line for line in messages if trial._hold_back(document, line)], messages
        else:
            return
    raise AssertionError("it is never accepted")


TARGET = Target(
    run,
    2048,
    (
        b"socket_type = stream\n", b"protocol = tcp\n", b"wait = no\n", b"user = root\n", b"server = /bin/cat\n",
        b"port = 7\n", b"service a\n{\n", b"}\n", b"defaults\n{\n", b"disable = yes\n", b"rlimit_cpu = ", b"UNLIMITED",
        b"only_from = ", b"no_access += ", b"env = ", b"passenv =", b"cps = ", b"instances = ", b"umask = ", b"nice = ",
        b"stream tcp nowait root /bin/cat cat\n", b"#<off># ", b"nowait.", b"internal", b"unix", b"[Socket]\n",
        b"[Service]\n", b"ListenStream=", b"Accept=yes\n", b"ExecStart=", b"User=", b"Environment=", b"SocketMode=",
        b"MaxConnectionsPerSource=", b"TriggerLimitBurst=", b"TriggerLimitIntervalSec=", b"IPAddressAllow=", b"\\\n",
        b"KeepAliveTimeSec=", b"infinity", b"%i", b"LimitAS=", b"RuntimeMaxSec=", b"\xff", b"\0", b"\"", b"'",
    ),
)  # fmt: skip
