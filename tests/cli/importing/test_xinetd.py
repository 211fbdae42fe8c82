"""xinetd.conf(5): every attribute that it documents."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from poolsrv.cli.importing.files import read_services
from poolsrv.cli.importing.service import BadSource
from poolsrv.config import reader
from poolsrv.plugins import loader
from tests.cli.importing.conftest import Import

NEEDED = {
    "type": "UNLISTED", "port": "7009", "socket_type": "stream", "protocol": "tcp", "wait": "no", "user": "root",
    "server": "/bin/cat",
}  # fmt: skip


def stanza(service: str = "probe", /, **attributes: str | None) -> str:
    """An entry, with the attributes that every service needs; None leaves one out."""
    entries = {**NEEDED, **attributes}
    lines = [f"    {key} = {value}" for key, value in entries.items() if value is not None]
    return f"service {service}\n{{\n" + "\n".join(lines) + "\n}\n"


def defaults(*lines: str) -> str:
    return "defaults\n{\n" + "\n".join(lines) + "\n}\n"


@pytest.mark.parametrize(("nice", "command"), [("3", ["/usr/bin/nice", "-n", "3", "/bin/cat"]), ("-3", ["/bin/cat"])])
def test_priorities_of_programs_with_a_user(imported: Import, nice: str, command: list[str]) -> None:
    others = "".join(stanza(f"other{number}", port=str(7010 + number), user="daemon") for number in range(2))
    result = imported(others + stanza(user="nobody", nice=nice))
    options = result.listeners["probe"]["cgi"]
    assert (options["user"], options["program"], "nice" in options) == ("nobody", command, False)
    assert ("only root may raise a priority" in result.notes) == (nice == "-3")


def test_a_service(imported: Import) -> None:
    result = imported(stanza(server_args="-u  -n", user="nobody"))
    assert result.tables["pool"] == {"workers": 1, "user": "nobody", "chdir": "/", "umask": 0o022}
    assert result.listeners == {
        "probe": {
            "bind": ":7009",
            "handler": "cgi",
            "cgi": {
                "protocol": "inetd",
                "program": ["/bin/cat", "-u", "-n"],
                "stderr": "client",
                "timeout": 0.0,
                "max_programs": 0,
            },
        }
    }


def test_each_documented_attribute_is_taken_or_named_in_a_comment(imported: Import) -> None:
    """Those that a listener has no key for stand in a comment, with their value."""
    values = {
        "access_times": "08:00-17:00", "banner_fail": "/etc/no", "libwrap": "probe", "max_load": "2.5", "mdns": "no",
        "deny_time": "60", "groups": "yes", "log_type": "SYSLOG daemon", "log_on_failure": "HOST ATTEMPT",
    }  # fmt: skip
    result = imported(stanza(**values, flags="INTERCEPT IDONLY LABELED REUSE NORETRY NODELAY KEEPALIVE"))
    for name, value in values.items():
        assert f"{name} = {value}" in result.notes
    for flag in ("INTERCEPT", "IDONLY", "LABELED"):
        assert f"flags = {flag}" in result.notes


@pytest.mark.parametrize(
    ("success", "failure", "is_logged", "lost"),
    [
        ("PID HOST DURATION EXIT TRAFFIC", None, True, None),
        ("host", None, True, None),
        ("HOST USERID", "USERID", True, "USERID in log_on_success and log_on_failure: only this is lost"),
        ("USERID", None, False, "USERID in log_on_success: only this is lost"),
        (None, "HOST", False, "log_on_failure = HOST: the log has a line when refusals begin"),
        ("", "", False, None),
    ],
)
def test_what_is_logged_of_connections(
    imported: Import, success: str | None, failure: str | None, is_logged: bool, lost: str | None
) -> None:
    result = imported(stanza(log_on_success=success, log_on_failure=failure))
    assert result.only.get("log_connections", False) is is_logged
    notes = result.notes.partition("conf:1: probe")[2]
    assert lost in notes if lost is not None else not re.search("lost|counterpart|log_on", notes)


def test_status_reload_and_stop_are_one_uncommenting_away(imported: Import, tmp_path: Path) -> None:
    result = imported(stanza())
    assert result.tables["pool"].keys() == {"workers", "chdir", "umask"}
    text = re.sub(r"^# (?=(pidfile|control) = )", "", result.text, flags=re.MULTILINE)
    config = tmp_path / "with.toml"
    config.write_text(text)
    pool = reader.read(config).finish().pool
    assert (pool.pidfile, pool.control) == (tmp_path / "poolsrv.pid", tmp_path / "poolsrv.ctl")


def test_limits(imported: Import) -> None:
    result = imported(
        stanza(
            instances="60", per_source="5", cps="25 30", nice="10", umask="27", rlimit_as="64M", rlimit_cpu="7",
            rlimit_files="100", env="A=1 B=x=y", passenv="LANG TZ",
        )
    )  # fmt: skip
    listener = result.only
    assert (listener["max_connections"], listener["when_full"], listener["max_per_source"]) == (60, "refuse", 5)
    assert listener["connection_rate"] == 25.0
    assert result.options["nice"] == 10
    assert result.options["umask"] == "0027"
    assert result.options["limits"] == {"address_space": 64 << 20, "cpu_seconds": 7, "open_files": 100}
    assert result.options["environment"] == {"A": "1", "B": "x=y"}
    assert result.options["pass_environment"] == ["LANG", "TZ"]


def test_unlimited_means_no_key(imported: Import) -> None:
    result = imported(
        stanza(instances="UNLIMITED", per_source="unlimited", rlimit_cpu="UNLIMITED", rlimit_as="UNLIMITED")
    )
    assert not {"max_connections", "when_full", "max_per_source"} & result.only.keys()
    assert "limits" not in result.options


def test_a_shell_does_what_no_option_does(imported: Import, tmp_path: Path) -> None:
    """The program takes its place: limits, the banner, and another argv[0]."""
    banner = tmp_path / "it's"
    banner.write_text("welcome\n")
    result = imported(
        stanza(
            banner=str(banner), rlimit_data="64M", rlimit_stack="8M", flags="NAMEINARGS", server="/bin/sh",
            server_args="other -c ulimit",
        )
    )  # fmt: skip
    program = result.options["program"]
    assert program[0] == "/bin/bash"
    run = subprocess.run(
        [*program[:-2], "-c", "ulimit -d; ulimit -s; echo $0"], capture_output=True, text=True, check=True
    )
    assert run.stdout == "welcome\n65536\n8192\nother\n"


def test_defaults_and_what_adds_to_them(imported: Import) -> None:
    """As xinetd 2.3.15 does it: = replaces, += adds to the defaults, -= takes from them."""
    common = defaults("only_from = 10.0.0.0", "only_from = 10.1.2.3", "instances = 7", "umask = 077")
    plus = stanza("plus", port="7001").replace("}\n", "    only_from += 127.0.0.1\n}\n")
    minus = stanza("minus", port="7002").replace("}\n", "    only_from -= 10.0.0.0\n}\n")
    replaced = stanza("replaced", port="7003").replace(
        "}\n", "    only_from = 192.0.2.1\n    only_from = 192.0.2.2\n}\n"
    )
    result = imported(plus + minus + common + replaced + stanza("usual", port="7004", instances="9"))
    allow = {name: listener["allow"] for name, listener in result.listeners.items()}
    assert allow == {
        "plus": ["10.0.0.0/8", "10.1.2.3", "127.0.0.1"],
        "minus": ["10.1.2.3"],
        "replaced": ["192.0.2.2"],
        "usual": ["10.0.0.0/8", "10.1.2.3"],
    }
    assert {name: listener["max_connections"] for name, listener in result.listeners.items()} == {
        "plus": 7, "minus": 7, "replaced": 7, "usual": 9,
    }  # fmt: skip
    assert all(listener["cgi"]["umask"] == "0077" for listener in result.listeners.values())


@pytest.mark.parametrize(
    ("entry", "network"),
    [
        ("128.138.12.0", ["128.138.12.0/24"]),
        ("0.0.0.0", ["0.0.0.0/0"]),
        ("128.138.209.{6,10}", ["128.138.209.6", "128.138.209.10"]),
        ("128.{138,139}", ["128.138.0.0/16", "128.139.0.0/16"]),
        ("10.0.0.5/8", ["10.0.0.0/8"]),
        ("192.0.2.7/255.255.255.0", ["192.0.2.0/24"]),
        ("2001:db8::1", ["2001:db8::1"]),
        ("2001:db8::/46", ["2001:db8::/46"]),
        ("localhost", ["127.0.0.0/8", "::1"]),
    ],
)
def test_the_forms_of_a_client(imported: Import, entry: str, network: list[str]) -> None:
    assert imported(stanza(only_from=entry)).only["allow"] == network
    assert imported(stanza(no_access=entry)).only["deny"] == network


@pytest.mark.parametrize("clients", ["", "gateway.example.org", ".example.org"])
def test_nobody_is_admitted_where_no_address_is_left(imported: Import, clients: str) -> None:
    """Without a value, xinetd admits nobody. Names can't be translated, and must not admit everybody."""
    listener = imported(stanza(only_from=clients)).only
    assert listener["deny"] == ["0.0.0.0/0", "::/0"]
    assert "allow" not in listener


def test_a_client_that_is_both_admitted_and_refused_is_refused(imported: Import) -> None:
    listener = imported(stanza(only_from="10.0.0.0", no_access="10.0.0.0")).only
    assert "allow" not in listener
    assert listener["deny"] == ["0.0.0.0/0", "::/0"]


def test_a_name_that_was_refused_holds_the_service_back(imported: Import) -> None:
    result = imported(stanza(no_access=".evil.example") + stanza("other", port="7010"))
    assert list(result.listeners) == ["other"]
    assert "NOT SERVED: no_access = .evil.example" in result.notes


@pytest.mark.parametrize(
    ("attributes", "bind"),
    [
        ({}, ":7009"),
        ({"flags": "IPv4"}, "0.0.0.0:7009"),
        ({"flags": "IPv6"}, ":7009"),
        ({"flags": "IPv6", "v6only": "yes"}, "[::]:7009"),
        ({"bind": "192.0.2.1"}, "192.0.2.1:7009"),
        ({"interface": "2001:db8::1"}, "[2001:db8::1]:7009"),
        ({"type": None, "port": None}, ":79"),
    ],
)
def test_addresses(imported: Import, attributes: dict[str, str | None], bind: str) -> None:
    assert imported(stanza("finger", **attributes)).only["bind"] == bind


def test_disabled_services_are_comments(imported: Import) -> None:
    text = (
        defaults("disabled = two", "enabled = one two three four")
        + stanza("one", port="7001", disable="yes")
        + stanza("two", port="7002")
        + stanza("three", port="7003")
        + stanza("four", port="7004", flags="DISABLE")
        + stanza("five", port="7005")
    )
    result = imported(text)
    assert list(result.listeners) == ["three"]
    assert result.notes.count("It is switched off there.") == 4
    assert "[listeners.five.cgi]" in result.notes


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"socket_type": "dgram", "protocol": "udp", "wait": "yes"}, "only TCP is served"),
        ({"wait": "yes"}, "wait = yes"),
        ({"type": "RPC UNLISTED", "rpc_version": "1-3", "rpc_number": "100"}, "an RPC service"),
        ({"type": "TCPMUX"}, "a TCPMUX service"),
        ({"flags": "SENSOR"}, "SENSOR"),
        ({"type": "INTERNAL", "server": None}, "the internal service probe"),
        ({"server": "/no/such/program"}, "there is no program /no/such/program"),
        ({"user": "no-such-user"}, 'there is no user "no-such-user"'),
        ({"group": "no-such-group"}, 'there is no group "no-such-group"'),
        ({"type": None, "port": None}, '"probe" is not in /etc/services'),
        ({"bind": "host.example.org"}, 'the address "host.example.org" is a name'),
    ],
)
def test_what_can_not_be_served_stands_in_comments_with_its_lines(
    imported: Import, attributes: dict[str, str | None], reason: str
) -> None:
    result = imported(stanza(**attributes))
    assert result.listeners == {}
    assert reason in result.notes
    for name, value in {**NEEDED, **attributes}.items():
        assert value is None or f"{name} = {value}" in result.notes


@pytest.mark.parametrize(
    ("name", "handler"), [("echo", "echo"), ("discard", None), ("daytime", None), ("time", None), ("chargen", None)]
)
def test_internal_services(imported: Import, name: str, handler: str | None) -> None:
    text = stanza(name, type="INTERNAL", id=f"{name}-stream", port=None, server=None, only_from="10.0.0.0")
    result = imported(text)
    if handler is None:
        assert f"the internal service {name}: no counterpart" in result.notes
    else:
        assert result.listeners == {"echo-stream": {"bind": ":7", "handler": "echo", "allow": ["10.0.0.0/8"]}}


@pytest.mark.parametrize("name", ["daytime", "discard"])
def test_an_internal_service_that_a_program_can_do_is_ready_to_be_switched_on(
    imported: Import, tmp_path: Path, name: str
) -> None:
    result = imported(stanza(name, type="INTERNAL", port=None, server=None))
    assert "if you uncomment the listener" in result.notes
    assert "user = root:" not in result.notes  # it is not served
    head, _, rest = result.text.partition(f"# [listeners.{name}]")
    lines, _, _ = rest.partition("# The old lines:")
    config = tmp_path / "on.toml"
    config.write_text(head + re.sub("^# ", "", f"# [listeners.{name}]{lines}", flags=re.MULTILINE))
    draft = reader.read(config)
    assert draft.document["listeners"][name]["cgi"]["protocol"] == "inetd"
    loader.load_plugins(draft)


def test_a_redirection_is_done_by_socat(imported: Import) -> None:
    result = imported(stanza(server=None, redirect="::1 8080"))
    assert result.options["program"][1:] == ["-", "TCP:[::1]:8080"]


def test_tcpd_is_left_out(imported: Import) -> None:
    result = imported(stanza(flags="NAMEINARGS", server="/usr/sbin/tcpd", server_args="/bin/cat -u"))
    assert result.options["program"] == ["/bin/cat", "-u"]
    assert "hosts.deny" in result.notes


def test_includes(imported: Import, tmp_path: Path) -> None:
    """As xinetd does it: no names with a dot or with a tilde at the end; and no file twice."""
    folder = tmp_path / "xinetd.d"
    folder.mkdir()
    (folder / "b").write_text(stanza("b", port="7002"))
    (folder / "a").write_text(stanza("a", port="7001"))
    for name in ("c.rpmsave", "d~", ".e"):
        (folder / name).write_text("nonsense")
    (tmp_path / "more").write_text(stanza("more", port="7003"))
    text = "include more\nincludedir xinetd.d\ninclude conf\n" + stanza("own", port="7004")
    assert sorted(imported(text, folder).listeners) == ["a", "b", "more", "own"]
    assert sorted(imported("", folder).listeners) == ["a", "b"]


def test_names_are_unique_and_valid(imported: Import) -> None:
    text = "".join(stanza(name, port=f"700{at}") for at, name in enumerate(["a.b", "a/b", "a-b", "é", "[x]"]))
    assert list(imported(text).listeners) == ["a-b", "a-b-2", "a-b-3", "service", "x"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("service a\n{\n  port = 1\n", ':1: "a" is not closed'),
        ("service a\nport = 1\n", ':2: "port = 1", expected "{"'),
        ("nonsense\nservice a\n{\n}\n", None),
        ("defaults\n{\n}\nfoo bar\n", ':4: "foo bar" begins no entry'),
        ("defaults\n{\n foo\n}\n", ':3: "foo" is no attribute'),
        ("defaults\n{\n instances += 3\n}\n", ':3: "+=" with "instances"'),
        (stanza(only_form="10.0.0.0"), ':10: unknown attribute "only_form" of a service (did you mean "only_from"?)'),
        (stanza().replace("}", "port = 7\n}"), ':10: "port" a second time'),
        (stanza(instances="many"), ':10: "instances" is "many", expected a number'),
        (stanza(port="70000"), ':4: "70000" is not a port'),
        (stanza(wait="perhaps"), ':7: "wait" is "perhaps", expected yes or no'),
        (stanza(umask="9"), ':10: "umask" is "9", expected octal digits'),
        (stanza(flags="FAST"), ':10: "flags" has "FAST"'),
        (stanza(cps="fast"), ':10: "cps" expected two numbers'),
        (stanza(server="/bin/cat -u"), ':9: "server" has 2 values, expected one'),
        (stanza(server=None), ':1: "probe" has no server'),
        ("defaults\n{\n}\ninclude /no/such/file\n", ":4: /no/such/file: No such file or directory"),
    ],
)
def test_mistakes_have_their_place(tmp_path: Path, text: str, error: str | None) -> None:
    path = tmp_path / "conf"
    path.write_text(text)
    with pytest.raises(BadSource) as raised:
        read_services([path])
    if error is not None:
        assert raised.value.lines[0].startswith(f"{path}{error}")


def test_every_mistake_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_text(stanza(instances="x") + stanza("b", umask="x") + stanza("c", nice="x"))
    with pytest.raises(BadSource) as raised:
        read_services([path])
    assert len(raised.value.lines) == 3
