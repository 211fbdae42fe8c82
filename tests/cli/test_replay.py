"""``poolsrv replay``: what it runs, what it shows, and what it refuses."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from poolsrv.cli import replaying
from poolsrv.cli.main import cli
from poolsrv.cli.replay import Answer, NoCapture, answer_of, find
from poolsrv.cli.replaying import Replayed, run
from poolsrv.ipc.captures import Capture, CapturedSandbox, encoded
from tests.helpers.server import is_alive, wait_until

SCRIPT = """#!/bin/sh
printf 'Content-Type: text/plain\\r\\nX-Cookie: %s\\r\\n\\r\\n' "$HTTP_COOKIE"
cat
echo "fails with $MODE" >&2
exit 3
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # where there is no poolsrv.toml
    file = tmp_path / "fail.sh"
    file.write_text(SCRIPT)
    file.chmod(0o755)
    return file


def capture(script: Path, **fields: Any) -> Capture:
    usual: dict[str, Any] = {
        "id": "abcdefgh", "at": 1.0, "listener": "www", "program": "/fail.sh", "protocol": "http",
        "command": [str(script)], "directory": str(script.parent), "request": "POST /fail.sh HTTP/1.1",
        "environment": {"PATH": os.environ["PATH"], "MODE": "bytes \udcff", "HTTP_COOKIE": "(masked)"},
        "masked": ["HTTP_COOKIE"], "body": b"hello", "body_length": 5, "timeout": 20.0, "returncode": 3, "status": 200,
        "header": ["Content-Type: text/plain", "X-Cookie: "], "stderr": ["fails with bytes \\xff"],
    }  # fmt: skip
    return Capture(**usual | fields)


def replay(one: Capture, script: Path, *arguments: str) -> Result:
    file = script.parent / f"{one.id}.run"
    file.write_bytes(encoded(one))
    file.chmod(0o600)
    return CliRunner().invoke(cli, ["replay", str(file), "--as-root", *arguments])


def test_the_same_input_gives_the_same_outcome(script: Path) -> None:
    result = replay(capture(script), script)
    assert result.exit_code == 0, result.output
    assert "masked, and so left out: HTTP_COOKIE; give values with --set NAME=VALUE" in result.stderr
    assert f"running {script} again, with all that it does" in result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [row[-1] for row in rows if row[0] in ("outcome", "status", "header", "stderr")] == ["same"] * 4


def test_what_differs_is_shown(script: Path) -> None:
    result = replay(capture(script), script, "--set", "HTTP_COOKIE=a=b", "--set", "MODE=another")
    assert result.exit_code == 1
    assert "masked" not in result.stderr
    assert "  - X-Cookie: \n  + X-Cookie: a=b\n" in result.stdout
    assert "  - fails with bytes \\xff\n  + fails with another\n" in result.stdout
    script.write_text("#!/bin/sh\nexit 0\n")
    result = replay(capture(script), script)
    assert result.exit_code == 1
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["outcome", "exited", "3", "exited", "0", "differs"] in rows
    assert ["status", "200", "502", "differs"] in rows


def test_a_dry_run_runs_nothing(script: Path) -> None:
    script.write_text(f"#!/bin/sh\ntouch {script}.ran\n")
    result = replay(capture(script, limits={"RLIMIT_CPU": 5}, umask="0027", nice=3), script, "--dry-run")
    assert result.exit_code == 0
    assert not Path(f"{script}.ran").exists()
    for line in (
        "command      " + str(script),
        "stdin        5 bytes",
        "RLIMIT_CPU   5",
        "environment  MODE=bytes \\xff",
    ):
        assert line in result.stdout.splitlines()
    assert "HTTP_COOKIE=" not in result.stdout


def test_its_sandbox_and_its_user(script: Path) -> None:
    """The sandbox holds; its user is not taken over, which is said."""
    sandbox = CapturedSandbox(
        read=["/etc"], write=["/dev/null"], execute=["/usr", "/bin", "/lib", "/lib64", str(script.parent)]
    )
    one = capture(script, sandbox=sandbox, user="games:www", body=b"", stderr=["no"])
    script.write_text(f"""#!/bin/sh
        printf 'Content-Type: text/plain\\nX-Cookie: \\n\\n'
        (echo x >{script.parent}/made) 2>/dev/null || echo no >&2; exit 3""")
    result = replay(one, script, "--dry-run")
    assert "in the server it has user games:www; here it has yours" in result.stderr
    found = dict(line.split(None, 1) for line in result.stdout.splitlines())
    assert [found[f"sandbox.{name}"] for name in ("read", "write", "connect", "system_calls", "private_tmp")] == [
        "/etc", "/dev/null", "none", "strict", "none"
    ]  # fmt: skip
    result = replay(one, script)
    assert result.exit_code == 0, result.output
    assert not (script.parent / "made").exists()
    missing = CapturedSandbox(execute=["/no/such"])
    result = replay(capture(script, sandbox=missing), script)
    assert (result.exit_code, "can't run" in result.stderr) == (2, True)


def test_a_body_that_was_cut_and_the_client_of_inetd(script: Path) -> None:
    result = replay(capture(script, body_length=900), script, "--dry-run")
    assert "the body has the first 5 of 900 bytes" in result.stderr
    result = replay(capture(script, protocol="inetd", masked=["QUERY_STRING"]), script, "--dry-run")
    assert "what the client sent is not captured" in result.stderr
    assert "with masked parts: QUERY_STRING" in result.stderr


def test_limits_umask_and_timeout_hold(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = script.with_name("ready")
    times = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(times) if ready.exists() else 0)
    monkeypatch.setattr(replaying, "time", clock)  # it stands still until the program has done all that is asked for
    script.write_text(
        "#!/bin/sh\nulimit -n; umask; nice; trap '' TERM; sleep 1000 & echo pid $! >&2; : >ready; exec sleep 1000\n"
    )
    one = capture(script, limits={"RLIMIT_NOFILE": 40, "RLIMIT_NONE": 1, "nice": 2}, umask="0137", timeout=2.0, nice=2)
    done = run(one, {"PATH": os.environ["PATH"]})
    assert done.output.split() == [b"40", b"0137", str(os.nice(0) + 2).encode()]
    assert (done.overdue, done.returncode) == (True, -9)
    assert answer_of(one, done) == Answer(504, [])
    pid = int(done.stderr[0].split()[1])
    wait_until(lambda: not is_alive(pid), "the end of the whole group")


def test_a_flood_of_output_is_bounded(script: Path) -> None:
    script.write_text(
        "#!/bin/sh\nhead -c 3000000 /dev/zero; head -c 3000000 /dev/zero | tr '\\0' 'x' >&2; echo end >&2\n"
    )
    done = run(capture(script), {"PATH": os.environ["PATH"]})
    assert len(done.output) == 65536
    assert done.stderr[-1].endswith("xend")
    assert done.returncode == 0


def test_a_process_that_holds_the_pipes_is_not_waited_for(script: Path) -> None:
    script.write_text("#!/bin/sh\nsleep 1000 & echo $!\n")
    done = run(capture(script), {"PATH": os.environ["PATH"]})
    os.kill(int(done.output), 9)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        (b"Content-Type: a/b\n\nx", Answer(200, ["Content-Type: a/b"])),
        (b"Status: 404 No\r\nContent-Type: a/b\r\n\r\n", Answer(404, ["Content-Type: a/b"])),
        (b"Location: http://a/\n\n", Answer(302, ["Location: http://a/"])),
        (b"Location: /a\n\n", Answer(0, ["Location: /a"])),
        (b"X-A: b\n\n", Answer(502, [])),
        (b"no header\n\n", Answer(502, [])),
        (b"Content-Type: a/b\n", Answer(502, [])),
        (b"", Answer(502, [])),
        (b"Status: \xff\nContent-Type: a\n\n", Answer(200, ["Content-Type: a"])),
    ],
)
def test_what_a_client_would_get(script: Path, output: bytes, answer: Answer) -> None:
    assert answer_of(capture(script), Replayed(0, False, 0.1, 0.1, output, [])) == answer
    assert answer_of(capture(script, protocol="line"), Replayed(0, False, 0.1, 0.1, output, [])) == Answer(0, [])


def test_what_can_not_be_run(script: Path) -> None:
    result = replay(capture(script, command=["/no/such/program"]), script)
    assert (result.exit_code, "can't run /no/such/program: No such file" in result.stderr) == (2, True)
    result = replay(capture(script), script, "--set", "NAME")
    assert (result.exit_code, "--set NAME: expected NAME=VALUE" in result.stderr) == (2, True)
    result = replay(capture(script, environment={"A\0": "b"}), script)
    assert (result.exit_code, "can't run" in result.stderr) == (2, True)


def test_a_file_that_others_may_have_changed_is_refused(script: Path) -> None:
    replay(capture(script), script, "--dry-run")
    file = script.parent / "abcdefgh.run"
    for mode, message in ((0o620, "another user may have changed it"), (0o602, "another user may have changed it")):
        file.chmod(mode)
        result = CliRunner().invoke(cli, ["replay", str(file), "--as-root"])
        assert (result.exit_code, message in result.stderr) == (2, True)
    os.mkfifo(script.parent / "fifo.run", 0o600)
    for name, message in (("fifo.run", "not a regular file"), ("none.run", "No such file")):
        result = CliRunner().invoke(cli, ["replay", str(script.parent / name), "--as-root"])
        assert (result.exit_code, message in result.stderr) == (2, True)


def test_ids_are_looked_up_in_folders(script: Path) -> None:
    folder = script.parent / "captures"
    folder.mkdir(mode=0o700)
    for name in ("abcdefgh.run", "abcdxxxx.run", "abcd.run", "abcdyyyy.txt"):
        (folder / name).touch()
    assert find("abcde", [str(folder)]) == str(folder / "abcdefgh.run")
    for name, folders, message in (
        (
            "",
            [str(folder)],
            "no ID, expected one that poolsrv runs shows, the beginning of one, or the path of a capture",
        ),
        ("abc", [str(folder)], "2 captures begin with abc: abcdefgh, abcdxxxx"),
        ("zzz", [str(folder)], f"no capture zzz in {folder}; poolsrv runs --failed shows the latest"),
        ("zzz", [], "no listener has the option capture; expected one that has, or the path of a capture"),
        ("zzz", [f"{folder}/none"], f"{folder}/none: No such file or directory"),
    ):
        with pytest.raises(NoCapture, match=f"^{re.escape(message)}$"):
            find(name, folders)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_has_to_say_so(script: Path) -> None:
    replay(capture(script), script, "--dry-run")
    result = CliRunner().invoke(cli, ["replay", str(script.parent / "abcdefgh.run")])
    assert (result.exit_code, "refused as root" in result.stderr) == (2, True)
