"""``poolsrv runs``: what it prints, and what it says where it can't."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from poolsrv.cli import control_client, runs
from poolsrv.cli.main import cli
from poolsrv.ipc.runs import Run
from poolsrv.ipc.stats import PROTOCOL, Answer

SEEN = [
    Run(id="aaaaaaaa", at=1.0, took=0.2, failed=False, listener="www", program="/ok.sh", returncode=0, status=200),
    Run(id="aaaabbbb", at=2.0, took=3.0, failed=True, listener="www", program="/bad.sh", returncode=-15, status=504,
        reason="over its timeout", request="GET /bad.sh?a=\x1b[2J HTTP/1.1", command=["/srv/bad.sh"], cpu=0.01,
        environment={"PATH": "/bin", "HTTP_COOKIE": "(masked)"}, stderr=["oops", "\x1b]0;title\x07"], pid=5),
]  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config whose server answers with SEEN."""

    def answer(path: str, request: bytes, timeout: float) -> bytes:
        word, _, run_id = request.decode().strip().partition(" ")
        assert word in ("run", "runs")
        found = [run for run in SEEN if run.id == run_id] if run_id else SEEN
        return msgspec_encoded(Answer(PROTOCOL, runs=found))

    monkeypatch.setattr(control_client, "_exchange", answer)
    file = tmp_path / "p.toml"
    file.write_text('[pool]\ncontrol = "ctl"\n')
    return file


def msgspec_encoded(answer: Any) -> bytes:
    import msgspec

    return msgspec.json.encode(answer) + b"\n"


def poolsrv_runs(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["runs", "--config", str(config), *arguments])


def test_the_list_is_a_table_and_can_be_filtered(config: Path) -> None:
    lines = poolsrv_runs(config).output.splitlines()
    assert lines[0].split() == [column[1:] for column in runs.COLUMNS]
    assert [line.split()[0] for line in lines[1:]] == ["aaaaaaaa", "aaaabbbb"]
    assert "killed by SIGTERM; over its timeout" in lines[2]
    assert "\\x1b[2J" in lines[2]
    for arguments in (["--failed"], ["--slow"], ["--slow", "2.5"]):
        assert "/ok.sh" not in poolsrv_runs(config, *arguments).output
    assert "/ok.sh" in poolsrv_runs(config, "--slow", "0.1").output
    assert poolsrv_runs(config, "--slow", "60").output == "no such run\n"
    assert [run["id"] for run in json.loads(poolsrv_runs(config, "--failed", "--json").output)] == ["aaaabbbb"]


def test_one_run_is_found_by_its_id_or_the_beginning_of_it(config: Path) -> None:
    for text in ("aaaabbbb", "aaaab"):
        output = poolsrv_runs(config, text).output
        assert "outcome      killed by SIGTERM; over its timeout, failed\n" in output
        assert "environment  HTTP_COOKIE=(masked)\nenvironment  PATH=/bin\n" in output
        assert output.endswith("stderr       oops\nstderr       \\x1b]0;title\\x07\n")
    assert json.loads(poolsrv_runs(config, "aaaab", "--json").output)["stderr"][0] == "oops"


@pytest.mark.parametrize(
    ("run_id", "message"),
    [
        ("zzz", "poolsrv: no run zzz: the server has 2 records, which poolsrv runs lists\n"),
        ("aaaa", "poolsrv: 2 runs begin with aaaa: aaaaaaaa, aaaabbbb\n"),
        ("bbbbbbbb", "poolsrv: no run bbbbbbbb: the server has 2 records, which poolsrv runs lists\n"),
        ("\x1b[2J", "poolsrv: no run \\x1b[2J: the server has 2 records, which poolsrv runs lists\n"),
    ],
)
def test_no_such_run(config: Path, run_id: str, message: str) -> None:
    result = poolsrv_runs(config, run_id)
    assert (result.exit_code, result.output) == (1, message)


def test_a_server_that_keeps_no_records(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Answer(PROTOCOL, error="unknown request 'runs', expected status")
    monkeypatch.setattr(control_client, "_exchange", lambda *arguments: msgspec_encoded(old))
    result = poolsrv_runs(config)
    assert result.exit_code == 1
    assert result.output.endswith("the server is of an older version, which keeps no records of runs; reload it\n")
    monkeypatch.setattr(control_client, "_exchange", lambda *arguments: msgspec_encoded(Answer(PROTOCOL, runs=[])))
    assert poolsrv_runs(config).output == "no program has run yet\n"
    assert poolsrv_runs(config, "abc").output == "poolsrv: no run abc: no program has run, or pool.runs is 0\n"


def test_no_server_and_no_control_socket(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[pool]\ncontrol = "ctl"\n')
    assert poolsrv_runs(file).output == f"{file}: the server does not run\n".replace(str(file), f"poolsrv: {file}")
    file.write_text("")
    result = poolsrv_runs(file)
    assert (result.exit_code, "pool.control: missing" in result.output) == (2, True)


def test_options_of_the_list_have_no_meaning_for_one_run(config: Path) -> None:
    assert poolsrv_runs(config, "aaaabbbb", "--failed").exit_code == 2
    assert poolsrv_runs(config, "--follow", "--json").exit_code == 2


def test_following_prints_each_run_once(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = iter([SEEN[:1], SEEN, SEEN])

    def all_of(file: Path) -> list[Run]:
        try:
            return next(rounds)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(runs, "all_of", all_of)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as end:
        runs.follow(config, runs.Filter())
    assert end.value.code == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", "aaaaaaaa", "aaaabbbb"]


def test_an_empty_id(config: Path) -> None:
    """That of a shell's variable that is not set, say: it is not the list."""
    result = poolsrv_runs(config, "")
    assert (result.exit_code, "an empty ID" in result.stderr) == (2, True)
