"""systemd's ``.socket`` units with ``Accept=yes``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from poolsrv.cli.importing.files import read_services
from poolsrv.cli.importing.service import BadSource
from tests.cli.importing.conftest import Import, Imported

SOCKET = "[Unit]\nDescription=A probe\n[Socket]\nAccept=yes\n"
SERVICE = "[Service]\nStandardInput=socket\nExecStart=-/bin/cat -u\n"


@pytest.fixture
def unit(imported: Import, tmp_path: Path) -> object:
    def run(socket: str = "ListenStream=7009\n", service: str = "", template: str | None = SERVICE) -> Imported:
        if template is not None:
            (tmp_path / "probe@.service").write_text(template + service)
        return imported(SOCKET + socket, name="probe.socket")

    return run


def test_a_unit(unit: Import) -> None:
    result = unit()
    assert result.listeners == {
        "probe": {
            "bind": ":7009",
            "handler": "cgi",
            "max_connections": 64,
            "when_full": "refuse",
            "cgi": {
                "protocol": "inetd",
                "program": ["/bin/cat", "-u"],
                "stderr": "client",
                "timeout": 0.0,
                "max_programs": 0,
            },
        }
    }
    assert "user = root" in result.notes


@pytest.mark.parametrize(
    ("lines", "bind"),
    [
        ("ListenStream=127.0.0.1:7009\n", "127.0.0.1:7009"),
        ("ListenStream=[::1]:7009\n", "[::1]:7009"),
        ("ListenStream=[::]:7009\n", ":7009"),
        ("ListenStream=7009\nBindIPv6Only=ipv6-only\n", "[::]:7009"),
        ("ListenStream=7001\nListenStream=\nListenStream=7002\nListenStream=7003\n", [":7002", ":7003"]),
        ("ListenStream=%t/probe/sock\n", "unix:/run/probe/sock"),
    ],
)
def test_addresses(unit: Import, lines: str, bind: object) -> None:
    assert unit(lines).only["bind"] == bind


def test_settings_of_the_socket(unit: Import) -> None:
    listener = unit(
        "ListenStream=7009\nMaxConnections=10\nMaxConnectionsPerSource=3\nBacklog=7\nNoDelay=no\nKeepAlive=yes\n"
        "KeepAliveTimeSec=2min\nReusePort=true\nTriggerLimitIntervalSec=4s\nTriggerLimitBurst=100\n"
        "IPAddressDeny=any\nIPAddressAllow=localhost 10.0.0.0/8\nMark=7\n"
    ).only
    assert listener["max_connections"] == 10
    assert listener["max_per_source"] == 3
    assert listener["backlog"] == 7
    assert listener["tcp_nodelay"] is False
    assert listener["keepalive"] == 120
    assert listener["reuse_port"] is True
    assert (listener["connection_rate"], listener["connection_rate_burst"]) == (25.0, 100)
    assert listener["allow"] == ["127.0.0.0/8", "::1", "10.0.0.0/8"]


def test_a_unix_socket(unit: Import) -> None:
    listener = unit("ListenStream=/run/a.sock\nNoDelay=yes\nMaxConnectionsPerSource=3\nIPAddressDeny=any\n").only
    assert (listener["bind"], listener["socket_mode"]) == ("unix:/run/a.sock", "0666")
    assert unit("ListenStream=/run/a.sock\nSocketMode=0600\n").only["socket_mode"] == "0600"


def test_clients_that_are_refused(unit: Import) -> None:
    listener = unit("ListenStream=7009\nIPAddressDeny=10.0.0.0/8\nIPAddressAllow=10.1.0.0/16\n").only
    assert listener["deny"] == ["10.0.0.0/8"]
    assert listener["allow"] == ["10.1.0.0/16", "0.0.0.0/0", "::/0"]
    assert "allow" not in unit("ListenStream=7009\nIPAddressAllow=10.1.0.0/16\n").only


def test_settings_of_the_service(unit: Import) -> None:
    result = unit(
        service="User=nobody\nGroup=nogroup\nNice=5\nUMask=0027\nLimitNOFILE=1024:4096\nLimitAS=64M\nLimitCPU=1min\n"
        "LimitNPROC=infinity\nRuntimeMaxSec=1h 30min\nStandardError=journal\nPassEnvironment=LANG TZ\n"
        'Environment="A=one two" B=2\nEnvironment=C=%%3\nProtectSystem=strict\nExecStartPre=/bin/true\n'
    )
    options = result.options
    assert (result.tables["pool"]["user"], result.tables["pool"]["group"]) == ("nobody", "nogroup")
    assert (options["nice"], options["umask"], options["timeout"]) == (5, "0027", 5400.0)
    assert options["limits"] == {"address_space": 64 << 20, "cpu_seconds": 60, "open_files": 1024}
    assert options["environment"] == {"A": "one two", "B": "2", "C": "%3"}
    assert options["pass_environment"] == ["LANG", "TZ"]
    assert "stderr" not in options
    assert "ProtectSystem=strict: no counterpart here; cgi's `sandbox` may do the same" in result.notes
    assert "ExecStartPre=/bin/true: no counterpart" in result.notes


def test_the_command_line(unit: Import) -> None:
    """Prefixes, quotes, continued lines and variables (systemd.service(5))."""
    template = SERVICE.replace("-/bin/cat -u", "@-/bin/bash name \\\n# a comment\n  -c 'a  b' ${V} $V $${V}")
    program = unit(template=template + "Environment='V=x y'\n").options["program"]
    assert program == ["/bin/bash", "-c", 'exec -a name "$0" "$@"', "/bin/bash", "-c", "a  b", "x y", "x", "y", "${V}"]


def test_drop_ins(unit: Import, tmp_path: Path) -> None:
    for name, text in (
        ("probe.socket.d/10.conf", "[Socket]\nListenStream=\nListenStream=7011\n"),
        ("probe.socket.d/20.conf", "[Socket]\nListenStream=7012\n"),
        ("probe@.service.d/a.conf", "[Service]\nExecStart=\nExecStart=/bin/true\n"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    result = unit()
    assert (result.only["bind"], result.options["program"]) == ([":7011", ":7012"], ["/bin/true"])


@pytest.mark.parametrize(
    ("settings", "client", "log"),
    [
        ("StandardInput=socket\nStandardOutput=inherit\n", "out\nerr\n", ""),
        ("StandardInput=socket\nStandardOutput=inherit\nStandardError=journal\n", "out\n", "err\n"),
        ("StandardInput=socket\nStandardOutput=socket\nStandardError=null\n", "out\n", ""),
        ("StandardInput=socket\n", "out\nerr\n", ""),
        ("StandardInput=socket\nStandardOutput=journal\n", "", "out\nerr\n"),
        ("StandardInput=socket\nStandardOutput=null\n", "", "err\n"),
    ],
)
def test_where_the_output_goes(unit: Import, settings: str, client: str, log: str) -> None:
    """The program is run as cgi would: one end for the connection, and one for the log."""
    script = "echo out; echo err >&2"
    options = unit(template=f"[Service]\nExecStart=/bin/sh -c '{script}'\n{settings}").options
    errors = subprocess.STDOUT if options.get("stderr") == "client" else subprocess.PIPE
    run = subprocess.run(options["program"], stdout=subprocess.PIPE, stderr=errors, check=True)
    assert (run.stdout.decode(), (run.stderr or b"").decode()) == (client, log)


def test_a_program_that_takes_its_connection_from_sd_listen_fds(unit: Import) -> None:
    """Without StandardInput=socket it is descriptor 3."""
    script = 'read line <&3; test "$LISTEN_PID" = $$ && echo "$LISTEN_FDS $LISTEN_FDNAMES $line"; cat'
    template = f"[Service]\nExecStart=/bin/sh -c '{script.replace('$', '$$')}'\n"
    program = unit(template=template).options["program"]
    run = subprocess.run(program, input="hello\n", capture_output=True, text=True, check=True)
    assert run.stderr == "1 connection hello\n"


@pytest.mark.parametrize(
    ("socket", "service", "reason"),
    [
        ("ListenStream=@abstract\n", "", "ListenStream=@abstract: no counterpart"),
        ("ListenStream=vsock::7\n", "", "ListenStream=vsock::7: no counterpart"),
        ("ListenDatagram=7009\n", "", "ListenDatagram=7009: no counterpart"),
        ("ListenStream=7009\nAccept=no\n", "", "Accept=no"),
        ("ListenStream=7009\n", "ExecStart=/bin/true\n", "several ExecStart="),
        ("ListenStream=7009\n", "ExecStart=\nExecStart=/bin/echo %i\n", "ExecStart= has %i"),
        ("ListenStream=7009\n", "ExecStart=\nExecStart=/no/such/program\n", "there is no program /no/such/program"),
        ("ListenStream=7009\n", "ExecStart=\n", "its service has no ExecStart="),
    ],
)
def test_what_can_not_be_served_stands_in_comments(unit: Import, socket: str, service: str, reason: str) -> None:
    result = unit(socket, service)
    assert result.listeners == {}
    assert reason in result.notes
    assert socket.splitlines()[-1] in result.notes


@pytest.mark.parametrize(
    ("service", "advice"),
    [
        (
            "ExecStart=\nExecStart=/bin/echo --of=%i x\n",
            "--of=%i: no counterpart of %i: remove it, or use $REMOTE_ADDR in the program",
        ),
        ("ExecStart=\nExecStart=/bin/echo %H\n", "%H: no counterpart of this specifier: write its value"),
        ("Environment=A=%I\n", "Environment=A=%I: no counterpart of %i: remove it, or use $REMOTE_ADDR"),
    ],
)
def test_a_specifier_without_counterpart_says_what_to_do(unit: Import, service: str, advice: str) -> None:
    result = unit(service=service)
    assert advice in result.notes
    assert "ExecStart" not in service or "# program = [" in result.text  # ready to be edited


def test_without_its_service(unit: Import) -> None:
    assert "probe@.service is neither beside it" in unit(template=None).notes


def test_a_folder(imported: Import, tmp_path: Path) -> None:
    """Of a folder, the units with Accept=yes are taken."""
    folder = tmp_path / "system"
    folder.mkdir()
    (folder / "a.socket").write_text(SOCKET + "ListenStream=7001\n")
    (folder / "a@.service").write_text(SERVICE)
    (folder / "b.socket").write_text("[Socket]\nListenStream=7002\n")
    assert list(imported("", folder).listeners) == ["a"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Accept=yes\n", ':1: "Accept=yes", expected a section, such as [Socket], before it'),
        ("[Socket]\nnonsense\n", ':2: "nonsense", expected NAME=VALUE'),
        ("[Socket]\nAccept=maybe\n", ':2: Accept= is "maybe", expected yes or no'),
        ("[Socket]\nAccept=yes\nMaxConnections=many\n", ':3: MaxConnections= is "many", expected a number'),
        ("[Socket]\nAccept=yes\nListenStream=/a\nSocketMode=9\n", ":4: SocketMode="),
        ("[Unit]\nDescription=x\n", ": no section [Socket], expected a .socket unit"),
    ],
)
def test_mistakes_have_their_place(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "probe.socket"
    path.write_text(text)
    with pytest.raises(BadSource) as raised:
        read_services([path])
    assert raised.value.lines[0].startswith(f"{path}{error}")
