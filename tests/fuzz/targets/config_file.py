"""Config files.

The rules: each error is one line with its place, and nothing but ``ConfigErrors`` is raised. A config without errors
means the same when ``poolsrv config`` has written it down.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from poolsrv.cli import effective_config
from poolsrv.config import reader
from poolsrv.config.draft import Draft
from poolsrv.config.errors import ConfigErrors
from poolsrv.config.model import LIMITS_KEYS, LISTENER_KEYS, LOG_KEYS, POOL_KEYS
from poolsrv.core.text import lines
from poolsrv.plugins import loader
from poolsrv.worker.spec import ServerSpec

from . import Target

BUNDLED = {"echo", "cgi", "files", "status"}  # the input must not choose what is imported
FOLDER = Path(tempfile.gettempdir())


def run(data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="poolsrv-fuzz-") as folder:
        file = Path(folder) / "poolsrv.toml"
        loaded = load(file, data)
        locate(file)
        if loaded is not None:
            check_accepted(file, *loaded)


def load(file: Path, text: bytes) -> tuple[Draft, ServerSpec] | None:
    file.write_bytes(text)
    try:
        draft = reader.read(file)
        if {plugin.text for listener in draft.listeners for plugin in listener.plugins} <= BUNDLED:
            return draft, loader.load_plugins(draft)
        if draft.problems:
            raise draft.problems.error(draft.document)
    except ConfigErrors as errors:
        check_errors(errors, file)
    return None


def locate(file: Path) -> None:
    try:
        reader.locate(file)
    except ConfigErrors as errors:
        check_errors(errors, file)


def check_errors(errors: ConfigErrors, file: Path) -> None:
    assert errors.problems
    for problem in errors.problems:
        assert problem.file == file
        assert problem.message
        for text in (problem.key, problem.message):
            assert text.isprintable(), text  # one line, without lone surrogates and control characters
            text.encode()
    assert len(str(errors).split("\n")) == len(errors.problems)


def check_accepted(file: Path, draft: Draft, server: ServerSpec) -> None:
    text = lines(effective_config.as_toml(draft, server))  # as it is printed
    again = load(file, text.encode())
    assert again is not None
    assert without_marks(effective_config.as_toml(*again)) == without_marks(text)
    assert again[1].config.pool == server.config.pool
    assert again[1].config.limits == server.config.limits
    assert again[1].config.log == server.config.log


def without_marks(text: str) -> list[str]:
    """The lines without the comments that say where a value comes from."""
    marks = ("default", '"auto"', "since it is exclusive", "default of the handler")
    kept = []
    for line in text.split("\n"):
        value, mark, comment = line.rpartition("  # ")
        kept.append(value if mark and comment.startswith(marks) else line)
    return kept


KEYS = sorted({*POOL_KEYS, *LIMITS_KEYS, *LOG_KEYS, *LISTENER_KEYS})
TARGET = Target(
    run,
    1024,
    (
        *(f"{key} = ".encode() for key in KEYS), b"[pool]\n", b"[limits]\n", b"[log]\n", b"[listeners.a]\n",
        b"[listeners.a.cgi]\n", b"[listeners.a.files]\n", b"[listeners.a.status]\n", b"[listeners.a.tls]\n", b'"auto"',
        b'":0"', b'"unix:x"', b'"127.0.0.1:80"', b'"[::1]:80"', b'"echo"', b'"cgi"', b"true", b"inf", b"nan", b"0o640",
        b"1e400", b'"""', b"\\u0000", b"\\udc80", b"1979-05-27", b"[[", b"]]", b"{a = 1}", b"[1, 2]", b"-1",
    ),
)  # fmt: skip
