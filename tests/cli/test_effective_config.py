"""``poolsrv config``: the config in effect, with every default."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import msgspec
import pytest
import tomli

from poolsrv.cli.effective_config import plain
from poolsrv.config.model import LIMITS_KEYS, LISTENER_KEYS, LOG_KEYS, POOL_KEYS
from poolsrv.config.reader import read
from poolsrv.core import cgroups
from poolsrv.core.toml import toml
from tests.helpers.command_line import invoke
from tests.helpers.server import TIMEOUT

ROOT = Path(__file__).parents[2]
FULL = """\
[pool]
workers = 2
umask = 0o027
control = "run/ctl"
[limits]
open_files = 2000
[log]
level = "debug"
[listeners.hello]
bind = [":0", "[::1]:7009", "unix:hello.sock", "systemd:web"]
handler = "echo"
workers = 1
allow = ["192.0.2.0/24", "::1"]
max_connections = 10
when_full = "refuse"
socket_mode = "0660"
[listeners.only-unix]
bind = "unix:b.sock"
handler = "echo"
half_close = "abort"
[listeners.www]
bind = "127.0.0.1:0"
handler = "cgi"
plugins = ["echo"]
proxy_protocol = true
trusted_proxies = ["192.0.2.7"]
[listeners.www.cgi]
root = "."
environment = { "A b" = "x\\"y", LONG = "LONG" }
interpreters = { ".py" = ["python3", "-I"] }
limits = { cpu_seconds = 3 }
timeout = 1
""".replace('"LONG" }', f'"{"x" * 200}" }}')


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return invoke("config", *arguments, cwd=cwd, POOLSRV_CONFIG=None)


def shown(path: Path) -> str:
    result = run("--config", path, cwd=path.parent)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"# {path}, with every default\n")
    return result.stdout


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.toml"
    path.write_text(FULL)
    return path


def test_the_output_is_the_same_config(file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = elsewhere / "b.toml"
    copy.write_text(shown(file))
    before, after = read(file).finish(), read(copy).finish()
    assert (after.pool, after.limits, after.log) == (before.pool, before.limits, before.log)
    for old, new in zip(before.listeners, after.listeners, strict=True):
        # The copy says what the handler's default is, and has every option of the plugins.
        same: dict[str, object] = {"half_close": None, "plugin_options": {}}
        assert msgspec.structs.replace(new, **same) == msgspec.structs.replace(old, **same)
    assert without_marks(shown(copy)) == without_marks(shown(file))


def without_marks(text: str) -> list[str]:
    return [line.partition("  # ")[0] for line in text.splitlines()[1:]]


def test_every_key_is_there_and_every_default_is_marked(file: Path) -> None:
    text = shown(file)
    document, given = tomli.loads(text), tomli.loads(FULL)
    for header, keys in (("pool", POOL_KEYS), ("limits", LIMITS_KEYS), ("log", LOG_KEYS)):
        check_table(text, f"[{header}]", keys, given[header])
    for name, table in given["listeners"].items():
        check_table(text, f"[listeners.{name}]", [key for key in LISTENER_KEYS if key != "tls"], table)
    options = document["listeners"]["www"]["cgi"]
    assert options["root"] == str(file.parent)
    assert options["timeout"] == 1.0
    assert options["limits"] == {"cpu_seconds": 3}
    assert options["environment"] == {"A b": 'x"y', "LONG": "x" * 200}
    assert options["max_programs"] == 100
    assert re.search(r"^max_programs = 100  # default$", text, re.MULTILINE)
    assert re.search(r"^timeout = 1\.0$", text, re.MULTILINE)


def check_table(text: str, header: str, keys: object, given: dict[str, object]) -> None:
    lines = text.split(f"\n{header}\n")[1].partition("\n\n")[0].splitlines()
    found = {}
    for line in lines:
        match = re.fullmatch(r"(?:# )?(\w+)(?: = .*?| is not set| has no effect .*?)(  # default.*)?", line)
        assert match is not None, line
        found[match[1]] = line.startswith("# ") or match[2] is not None
    assert found == {key: key not in given for key in keys}  # type: ignore[attr-defined]


def test_what_the_machine_decides_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    listener = '[listeners.a]\nbind = ":0"\nhandler = "cgi"\n[listeners.a.cgi]\nroot = "."\n'
    path.write_text(listener)
    assert f'\nworkers = {cgroups.usable()}  # default: "auto"\n' in shown(path)
    assert '\nhalf_close = "timely"  # default of the handler\n' in shown(path)
    path.write_text(f'{listener}[pool]\nworkers = "auto"\n')
    assert f'\nworkers = {cgroups.usable()}  # "auto"\n' in shown(path)


def test_the_sample_config(tmp_path: Path) -> None:
    copy = tmp_path / "copy.toml"
    copy.write_text(shown(ROOT / "poolsrv.toml"))
    before, after = read(ROOT / "poolsrv.toml").finish(), read(copy).finish()
    assert [listener.bind for listener in after.listeners] == [listener.bind for listener in before.listeners]
    assert without_marks(shown(copy)) == without_marks(shown(ROOT / "poolsrv.toml"))


def test_tls(tmp_path: Path) -> None:
    for name in ("one", "two"):
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        output = ("-keyout", f"{name}.pem", "-out", f"{name}.crt")
        command = ["openssl", "req", "-x509", *key, "-subj", f"/CN={name}", *output]
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=TIMEOUT)
    path = tmp_path / "a.toml"
    path.write_text(
        '[listeners.a]\nbind = ":0"\nhandler = "echo"\n[listeners.a.tls]\ncertificate = "one.crt"\nkey = "one.pem"\n'
        'alpn = ["h2"]\n[[listeners.a.tls.sni]]\nnames = ["two.example"]\ncertificate = "two.crt"\nkey = "two.pem"\n'
    )
    assert shown(path).partition("\n[listeners.a.tls]\n")[2] == (
        f'certificate = "{tmp_path}/one.crt"\n'
        f'key = "{tmp_path}/one.pem"\n'
        "# client_ca is not set\n"
        "# client_certificate is not set\n"
        'minimum_version = "1.2"  # default\n'
        'alpn = ["h2"]\n'
        "handshake_timeout = 10.0  # default\n"
        "\n"
        "[[listeners.a.tls.sni]]\n"
        'names = ["two.example"]\n'
        f'certificate = "{tmp_path}/two.crt"\n'
        f'key = "{tmp_path}/two.pem"\n'
    )


def test_errors_are_those_of_check(tmp_path: Path) -> None:
    (tmp_path / "poolsrv.toml").write_text('[listeners.a]\nbind = 7\nhandler = "ecoh"\n')
    result = run(cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    first, second = result.stderr.splitlines()
    assert first.startswith("poolsrv.toml: listeners.a.bind: got 7 (a number)")
    assert second.startswith('poolsrv.toml: listeners.a.handler: no plugin "ecoh" is installed')


@pytest.mark.parametrize(
    "value",
    [
        "",
        'a"b\\c\n\t\x00\x7f\x9b\u2028é',
        0,
        -1,
        1.5,
        float("inf"),
        1e300,
        True,
        [],
        [1, "a"],
        {},
        {"a b": {"c": [True]}, "": 1},
    ],
)
def test_values_are_toml(value: object) -> None:
    assert tomli.loads(f"x = {toml(plain(value))}")["x"] == value


def test_what_is_printed_can_be_read_again_whatever_the_names(tmp_path: Path) -> None:
    folder = tmp_path / "a\nb"
    folder.mkdir()
    address = "unix:\x1b[1m\x9b\u202e.sock"
    (folder / "poolsrv.toml").write_text(f'[listeners.a]\nbind = {toml(address)}\nhandler = "echo"\n')
    result = run("--config", "a\nb/poolsrv.toml", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("# a\\nb/poolsrv.toml, with every default\n")
    (bind,) = tomli.loads(result.stdout)["listeners"]["a"]["bind"]
    assert bind == f"unix:{folder}/{address[5:]}"


@pytest.mark.parametrize("text", ["1979-05-27", "07:32:00", "1979-05-27T07:32:00+00:00", "1979-05-27T07:32:00"])
def test_dates_stay_dates(text: str) -> None:
    value = tomli.loads(f"x = {text}")["x"]
    assert tomli.loads(f"x = {toml(plain(value))}")["x"] == value
