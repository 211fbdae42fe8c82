"""inetd.conf(5): all of its fields, as the inetds of Debian, GNU and the BSDs have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolsrv.cli.importing.files import read_services
from poolsrv.cli.importing.service import BadSource
from tests.cli.importing.conftest import Import


def test_a_service(imported: Import) -> None:
    result = imported("finger\tstream tcp  nowait nobody /bin/cat\tcat -u 'two words' \"more of them\"\n")
    assert result.tables["pool"]["user"] == "nobody"
    assert result.listeners == {
        "finger": {
            "bind": ":79",
            "handler": "cgi",
            "connection_rate": 4.267,
            "connection_rate_burst": 256,
            "cgi": {
                "protocol": "inetd",
                "program": ["/bin/cat", "-u", "two words", "more of them"],
                "stderr": "client",
                "timeout": 0.0,
                "max_programs": 0,
            },
        }
    }


@pytest.mark.parametrize(
    ("line", "bind"),
    [
        ("7009 stream tcp", ":7009"),
        ("7009 stream tcp4", "0.0.0.0:7009"),
        ("7009 stream tcp6", "[::]:7009"),
        ("7009 stream tcp46", ":7009"),
        ("*:7009 stream tcp", ":7009"),
        ("127.0.0.1:finger stream tcp", "127.0.0.1:79"),
        ("[::1]:7009 stream tcp6", "[::1]:7009"),
        ("192.0.2.1,192.0.2.2:7009 stream tcp", ["192.0.2.1:7009", "192.0.2.2:7009"]),
        ("localhost:7009 stream tcp4", "127.0.0.1:7009"),
        ("/run/probe.sock stream unix", "unix:/run/probe.sock"),
    ],
)
def test_addresses(imported: Import, line: str, bind: object) -> None:
    assert imported(f"{line} nowait root /bin/cat cat\n").only["bind"] == bind


def test_an_address_for_all_that_follow(imported: Import) -> None:
    text = "7001 stream tcp nowait root /bin/cat cat\n127.0.0.1:\n7002 stream tcp nowait root /bin/cat cat\n*:\n"
    result = imported(text + "7003 stream tcp nowait root /bin/cat cat\n")
    assert [listener["bind"] for listener in result.listeners.values()] == [":7001", "127.0.0.1:7002", ":7003"]


@pytest.mark.parametrize(
    ("field", "keys"),
    [
        ("nowait", {"connection_rate": 4.267, "connection_rate_burst": 256}),
        ("nowait.400", {"connection_rate": 6.667, "connection_rate_burst": 400}),
        ("nowait:60", {"connection_rate": 1.0, "connection_rate_burst": 60}),
        ("nowait/10", {"max_connections": 10}),
        ("nowait/10/120/3", {"max_connections": 10, "rate_per_source": 2.0, "max_per_source": 3}),
        ("nowait/0", {}),
    ],
)
def test_the_numbers_behind_nowait(imported: Import, field: str, keys: dict[str, float]) -> None:
    listener = imported(f"7009 stream tcp {field} root /bin/cat cat\n").only
    assert {key: value for key, value in listener.items() if key not in ("bind", "handler", "cgi")} == keys


@pytest.mark.parametrize("field", ["daemon:nogroup", "daemon.nogroup", "daemon:nogroup/class"])
def test_user_and_group(imported: Import, field: str) -> None:
    pool = imported(f"7009 stream tcp nowait {field} /bin/cat cat\n").tables["pool"]
    assert (pool["user"], pool["group"]) == ("daemon", "nogroup")


def test_several_users(imported: Import) -> None:
    """No program gets more rights than before: root only if all of them are root's."""
    line = "700{0} stream tcp nowait {1} /bin/cat cat\n"
    mixed = "".join(
        line.format(at, user) for at, user in enumerate(["root", "daemon", "nobody", "nobody", "root", "root"])
    )
    result = imported(mixed)
    assert result.tables["pool"]["user"] == "nobody"
    assert len(result.listeners) == 6
    assert [listener["cgi"].get("user") for listener in result.listeners.values()] == [
        None, "daemon", None, None, None, None
    ]  # fmt: skip
    assert "user = root: no counterpart, programs are root's only where the whole server is" in result.notes
    assert "`poolsrv import --user root`" in result.notes
    assert "user = daemon: no counterpart" not in result.notes
    result = imported(mixed, user="daemon")
    assert (result.tables["pool"]["user"], list(result.listeners)) == ("daemon", ["7001"])
    result = imported(mixed, user="root")
    assert "user" not in result.tables["pool"]
    assert list(result.listeners) == ["7000", "7004", "7005"]
    assert "user" not in imported(line.format(1, "root")).tables["pool"]


def test_a_group_and_a_priority_beside_a_user(imported: Import) -> None:
    lines = ["daemon", "daemon:mail", "nobody:mail", "daemon"]
    text = "".join(f"700{at} stream tcp nowait {who} /bin/cat cat\n" for at, who in enumerate(lines))
    result = imported(text)
    assert (result.tables["pool"]["user"], "group" in result.tables["pool"]) == ("daemon", False)
    found = [listener["cgi"] for listener in result.listeners.values()]
    assert [(one.get("user"), one.get("group")) for one in found] == [
        (None, None), (None, "mail"), ("nobody", "mail"), (None, None)
    ]  # fmt: skip


def test_argv0(imported: Import) -> None:
    assert imported("7009 stream tcp nowait root /bin/cat\n").options["program"] == ["/bin/cat"]
    assert imported("7009 stream tcp nowait root /bin/cat /bin/cat -u\n").options["program"] == ["/bin/cat", "-u"]
    other = imported("7009 stream tcp nowait root /bin/cat other -u\n").options["program"]
    assert other == ["/bin/bash", "-c", 'exec -a other "$0" "$@"', "/bin/cat", "-u"]


def test_tcpd(imported: Import) -> None:
    result = imported("7009 stream tcp nowait root /usr/sbin/tcpd /bin/cat -u\n")
    assert result.options["program"] == ["/bin/cat", "-u"]
    assert "tcpd: no counterpart" in result.notes
    result = imported("7009 stream tcp nowait root /usr/sbin/tcpd in.nosuchd\n")
    assert "there is no program /usr/sbin/in.nosuchd" in result.notes


def test_comments_and_lines_that_are_continued(imported: Import) -> None:
    text = "# a comment\n\n#<off># finger stream tcp nowait root /bin/cat cat\n  # another\n#<off># nonsense\n"
    result = imported(text + "7009 stream tcp nowait root\n\t/bin/cat cat\n  -u\n")
    assert result.options["program"] == ["/bin/cat", "-u"]
    assert "It is switched off there." in result.notes
    assert "[listeners.finger.cgi]" in result.notes


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("talk dgram udp wait nobody.tty /bin/cat cat", "dgram over udp"),
        ("7009 stream tcp wait root /bin/cat cat", "wait: no counterpart"),
        ("mountd/1-3 stream rpc/tcp nowait root /bin/cat cat", "an RPC service"),
        ("tcpmux/date stream tcp nowait root /bin/cat cat", "a TCPMUX service"),
        ("daytime stream tcp nowait root internal", "the internal service daytime"),
        ("nosuchservice stream tcp nowait root /bin/cat cat", "is not in /etc/services"),
        ("host.example.org:7009 stream tcp nowait root /bin/cat cat", "is a name, which is not looked up"),
        ("7009 stream tcp nowait root /bin/cat cat \udcff", "bytes that are not UTF-8"),
    ],
)
def test_what_can_not_be_served_stands_in_comments_with_its_line(
    imported: Import, tmp_path: Path, line: str, reason: str
) -> None:
    (tmp_path / "more").write_bytes(line.encode("utf-8", "surrogateescape") + b"\n")
    result = imported("", tmp_path / "more")
    assert result.listeners == {}
    assert reason in result.notes
    assert line.replace("\udcff", "\\xff") in result.notes


def test_echo_and_buffers(imported: Import) -> None:
    result = imported("echo stream tcp,sndbuf=64k nowait root internal\n")
    assert (result.only["handler"], result.only["bind"]) == ("echo", ":7")
    assert "sndbuf=64k: no counterpart" in result.notes


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("finger stream tcp nowait root", ":2: 5 fields, expected service name, socket type, protocol"),
        ("finger steam tcp nowait root /bin/cat cat", ':2: "steam" is no socket type'),
        ("finger stream tcp perhaps root /bin/cat cat", ':2: "perhaps", expected wait or nowait'),
        ("finger stream tcp nowait.x root /bin/cat cat", ':2: "x" behind nowait, expected numbers'),
        ("finger stream tcp nowait root /bin/cat 'cat", ":2: a quote is not closed"),
        ("70000 stream tcp nowait root /bin/cat cat", ':2: "70000" is not a port'),
    ],
)
def test_mistakes_have_their_place(tmp_path: Path, line: str, error: str) -> None:
    path = tmp_path / "inetd.conf"
    path.write_text(f"# first\n{line}\n")
    with pytest.raises(BadSource) as raised:
        read_services([path])
    assert raised.value.lines[0].startswith(f"{path}{error}")
