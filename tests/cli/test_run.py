"""``poolsrv run``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers.server import ServerFailed, ServerProcess, children_of, is_alive, wait_until

SHOUT = """
    import msgspec
    from poolsrv import hookimpl

    class Shout:
        class Options(msgspec.Struct, frozen=True):
            end: str = "!"

        def __init__(self, options: Options) -> None:
            self.end = options.end.encode()

        @hookimpl
        def on_readable(self, conn):
            if conn.eof:
                conn.send(conn.recv().upper() + self.end)
"""
RUN = ("run", "shouting:Shout", "--bind", "127.0.0.1:0", "--workers", "1", "--set", "end=5")


def plugin(folder: Path, text: str = SHOUT) -> None:
    (folder / "shouting.py").write_text(textwrap.dedent(text))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plugin(tmp_path)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[object]:
    with ExitStack() as started:

        def start(*command: str) -> ServerProcess:
            return started.enter_context(ServerProcess("", folder, command=command)).wait_ready()

        yield start


def poolsrv(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "poolsrv", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.server
def test_a_class_is_served_and_hup_reads_it_again(folder: Path, start) -> None:  # type: ignore[no-untyped-def]
    server = start(*RUN)
    assert server.exchange("shout", b"hi") == b"HI5"
    plugin(folder, SHOUT.replace("upper", "title"))
    server.reload()
    assert server.exchange("shout", b"hi") == b"Hi5"
    plugin(folder, SHOUT.replace("def", "def def"))
    server.signal(signal.SIGHUP)
    server.wait_for_line(r"reload: poolsrv run: HANDLER: the plugin shouting:Shout can't be imported: SyntaxError")
    server.wait_for_line("nothing has changed")
    assert server.exchange("shout", b"hi") == b"Hi5"
    server.signal(signal.SIGINT)
    assert server.wait() == 0
    assert not (folder / "__pycache__").exists()


@pytest.mark.server
def test_the_printed_config_serves_the_same(folder: Path, start) -> None:  # type: ignore[no-untyped-def]
    further = ("--set", "pool.umask=027", "--set", "idle_timeout=7", "--set", "allow=['127.0.0.1']", "--plugin", "echo")
    printed = poolsrv(*RUN, *further, "--print-config", cwd=folder)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert '[listeners.shout.shout]\nend = "5"\n' in printed.stdout
    (folder / "printed.toml").write_text(printed.stdout)
    assert poolsrv("check", "-c", "printed.toml", cwd=folder).returncode == 0
    config = poolsrv("config", "-c", "printed.toml", cwd=folder).stdout
    for line in (
        "workers = 1",
        "umask = 0o027",
        "idle_timeout = 7.0",
        'plugins = ["echo"]',
        'allow = ["127.0.0.1/32"]',
    ):
        assert f"{line}\n" in config
    (folder / "printed.toml").write_text(poolsrv(*RUN, "--print-config", cwd=folder).stdout)
    assert start("--config", "printed.toml").exchange("shout", b"hi") == b"HI5"


@pytest.mark.server
def test_dev_takes_good_edits_and_goes_on_after_a_broken_one(folder: Path, start) -> None:  # type: ignore[no-untyped-def]
    server = start(*RUN, "--dev")
    (watcher,) = (pid for pid in children_of(server.pid) if pid != server.dispatcher_pid)
    plugin(folder, SHOUT.replace("upper", "def def"))
    server.wait_for_line("changed: shouting.py")
    server.wait_for_line("nothing has changed")
    assert server.exchange("shout", b"hi") == b"HI5"
    after = len(server.lines)
    plugin(folder, SHOUT.replace("upper", "title"))
    server.wait_for_line("changed: shouting.py", after=after)
    server.wait_for_line("reload: stopping", after=after)
    assert server.exchange("shout", b"hi") == b"Hi5"
    server.signal(signal.SIGINT)
    assert server.wait() == 0
    wait_until(lambda: not is_alive(watcher), "the end of the process that watches")


@pytest.mark.server
def test_dev_watches_a_config_too(folder: Path, start) -> None:  # type: ignore[no-untyped-def]
    config = poolsrv(*RUN, "--print-config", cwd=folder).stdout
    (folder / "dev.toml").write_text(config)
    server = start("--dev", "--config", "dev.toml")
    (folder / "dev.toml").write_text(config.replace('"5"', '"?"'))
    server.wait_for_line("changed: dev.toml")
    server.wait_for_line("reload: stopping")
    assert server.exchange("shout", b"hi") == b"HI?"


@pytest.mark.server
def test_an_address_in_use_is_an_error_of_run_time(folder: Path, start) -> None:  # type: ignore[no-untyped-def]
    address = start(*RUN).addresses("shout")[0]
    message = f"poolsrv run: --bind: can't listen on {address}: another process listens there"
    with pytest.raises(ServerFailed, match=re.escape(message)):
        start("run", "echo", "--bind", address)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ecko",), 'poolsrv run: HANDLER: no plugin "ecko" is installed (did you mean "echo"?), expected'),
        (("shouting",), '(did you mean "shouting:Shout"?)'),
        (
            ("echo", "--set", "idel_timeout=1"),
            'poolsrv run: --set idel_timeout: unknown key (did you mean "idle_timeout"',
        ),
        (("echo", "--set", "bind=:1"), "bind has an argument of its own, expected --bind"),
        (("echo", "--set", "x"), '"x" has no value, expected KEY=VALUE, such as idle_timeout=5'),
        (("echo", "--bind", "80"), 'poolsrv run: --bind: "80" is a port alone, expected ":80" for every address'),
        (("echo", "--set", f"tls.certificate={'x' * 120_000}"), "expected at most 100000: write a config"),
    ],
)
def test_mistakes_exit_with_2_and_name_the_argument(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    plugin(tmp_path)
    result = poolsrv("run", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_config_has_no_place_here(tmp_path: Path) -> None:
    result = poolsrv("--config", "x.toml", "run", "echo", cwd=tmp_path)
    assert result.returncode == 2
    assert "poolsrv run serves without a config, expected no --config" in result.stderr


def test_bytes_that_are_no_text_can_t_be_printed(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff")
    result = poolsrv("run", "echo", "--bind", f"unix:{name}", "--print-config", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "bytes that are not UTF-8" in result.stderr


def test_dev_without_watchfiles_says_how_to_get_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['watchfiles'] = None; sys.argv = ['poolsrv', 'run', 'echo', '--dev'];"
        "from poolsrv.__main__ import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == (
        "poolsrv: --dev needs watchfiles, expected it installed: pip install watchfiles\n"
    )  # fmt: skip
