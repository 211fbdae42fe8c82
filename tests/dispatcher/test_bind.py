"""Binding: every kind of address, and what can fail."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.puppet import Client, install_puppet
from tests.helpers.server import ServerProcess, free_port, receive_all

pytestmark = pytest.mark.server

Serve = Callable[..., ServerProcess]


def config(bind: str, extra: str = "", name: str = "hello", pool: str = "[pool]\nworkers = 2\n") -> str:
    return f'{pool}[listeners.{name}]\nbind = {bind}\nhandler = "echo"\n{extra}\n'


def echo(family: int, address: tuple[str, int] | str) -> bytes:
    with socket.socket(family) as sock:
        sock.settimeout(30)
        sock.connect(address)
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock)


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            return False
    return True


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on 127.0.0.1 where another process listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


# --- each kind, on one server


MODES = {"0o660": 0o660, '"0600"': 0o600, "0o777": 0o777}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that listens at every kind of address."""
    text = config('"127.0.0.1:0"', name="ipv4") + config('"unix:relative"', name="relative", pool="")
    for number, mode in enumerate(MODES):
        text += config(f'"unix:mode{number}"', f"socket_mode = {mode}", f"mode{number}", pool="")
    if has_ipv6():
        text += config('"[::1]:0"', name="ipv6", pool="") + config('"[::]:0"', name="every-ipv6", pool="")
        text += config('":0"', name="every", pool="")
        text += config('["127.0.0.1:0", "[::1]:0", "127.0.0.2:0", "unix:several"]', name="several", pool="")
    with ServerProcess(text, tmp_path_factory.mktemp("bind")) as running:
        yield running.wait_ready()


def test_ipv4(server: ServerProcess) -> None:
    (address,) = server.addresses("ipv4")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    assert echo(socket.AF_INET, ("127.0.0.1", port(address))) == b"hello"


@IPV6
def test_ipv6_alone(server: ServerProcess) -> None:
    (address,) = server.addresses("ipv6")
    assert re.fullmatch(r"\[::1\]:\d+", address)
    assert echo(socket.AF_INET6, ("::1", port(address))) == b"hello"


@IPV6
def test_every_ipv6_address_is_not_every_ipv4_address(server: ServerProcess) -> None:
    (address,) = server.addresses("every-ipv6")
    assert echo(socket.AF_INET6, ("::1", port(address))) == b"hello"
    with pytest.raises(ConnectionRefusedError):
        echo(socket.AF_INET, ("127.0.0.1", port(address)))


@IPV6
def test_every_address_of_both_families(server: ServerProcess) -> None:
    (address,) = server.addresses("every")
    assert re.fullmatch(r"\[::\]:\d+", address)
    assert echo(socket.AF_INET6, ("::1", port(address))) == b"hello"
    assert echo(socket.AF_INET, ("127.0.0.1", port(address))) == b"hello"


@IPV6
def test_several_addresses_of_one_listener(server: ServerProcess) -> None:
    path = server.folder / "several"
    first, second, third, fourth = server.addresses("several")
    assert echo(socket.AF_INET, ("127.0.0.1", port(first))) == b"hello"
    assert echo(socket.AF_INET6, ("::1", port(second))) == b"hello"
    assert echo(socket.AF_INET, ("127.0.0.2", port(third))) == b"hello"
    assert fourth == f"unix:{path}"
    assert echo(socket.AF_UNIX, str(path)) == b"hello"


def test_a_path_is_relative_to_the_config_file(server: ServerProcess) -> None:
    assert server.addresses("relative") == [f"unix:{server.folder}/relative"]
    assert stat.S_ISSOCK((server.folder / "relative").stat().st_mode)


@pytest.mark.parametrize(("number", "bits"), list(enumerate(MODES.values())))
def test_the_mode_of_a_unix_socket(server: ServerProcess, number: int, bits: int) -> None:
    path = server.folder / f"mode{number}"
    assert stat.S_IMODE(path.stat().st_mode) == bits
    assert echo(socket.AF_UNIX, str(path)) == b"hello"


# --- what was there before


def test_a_server_that_has_ended_can_be_started_again_at_once(serve: Serve, tmp_path: Path) -> None:
    """Although connections that the first one closed are in TIME_WAIT."""
    site = install_puppet(tmp_path / "site")
    address = f"127.0.0.1:{free_port()}"
    server = serve(config(f'"{address}"').replace("echo", "puppet"), paths=(site,))
    with Client(server, "hello") as client:
        client.tell("close")
        assert client.answer() == ""
    assert server.stop() == 0
    again = serve(config(f'"{address}"'))
    assert again.addresses("hello") == [address]


# --- what is in the way


def test_all_addresses_that_can_not_be_bound_are_named_and_the_server_exits_1(
    serve: Serve, tmp_path: Path, taken: int
) -> None:
    regular = tmp_path / "regular"
    regular.write_text("mine")
    other = tmp_path / "other.sock"
    text = (
        config(f'["127.0.0.1:{taken}", "127.0.0.1:0", "unix:{other}"]', name="a")
        + config('"192.0.2.1:7007"', name="b", pool="")
        + config(f'["unix:{regular}", "unix:{tmp_path}/no/such/s"]', name="c", pool="")
    )
    server = serve(text, ready=False)
    assert server.wait() == 1
    assert server.lines == [
        f"poolsrv: listeners.a: can't listen on 127.0.0.1:{taken}: another process listens there",
        "poolsrv: listeners.b: can't listen on 192.0.2.1:7007: this machine has no such address",
        f"poolsrv: listeners.c: can't listen on unix:{regular}: there is a file of that name, and it is no socket",
        f"poolsrv: listeners.c: can't listen on unix:{tmp_path}/no/such/s: there is no directory {tmp_path}/no/such",
    ]
    assert regular.read_text() == "mine"
    assert not other.exists()  # what could be bound has been given up again


def test_a_port_below_1024_needs_a_privilege(serve: Serve, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to give up its privileges")
    server = serve(config('"127.0.0.1:7"'), ready=False, prefix=("setpriv", "--bounding-set=-net_bind_service"))
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except FileNotFoundError:
        lowest = 1024
    if lowest <= 7:
        pytest.skip("here it needs none")
    assert server.wait() == 1
    assert server.lines == [
        "poolsrv: listeners.hello: can't listen on 127.0.0.1:7: permission denied: ports below 1024 need root or"
        " CAP_NET_BIND_SERVICE, and this is 7"
    ]


# --- unix sockets


def test_a_unix_socket_exists_as_long_as_its_server(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = serve(config(f'"unix:{path}"'))
    assert echo(socket.AF_UNIX, str(path)) == b"hello"
    assert server.stop() == 0
    assert not path.exists()


def test_a_stale_socket_is_replaced(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = serve(config(f'"unix:{path}"'))
    first.signal(signal.SIGKILL)
    first.wait()
    assert path.exists()
    second = serve(config(f'"unix:{path}"'))
    second.wait_for_line(f"replacing the stale socket file {path}")
    assert echo(socket.AF_UNIX, str(path)) == b"hello"


def test_a_live_socket_is_refused_and_left_alone(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    serve(config(f'"unix:{path}"'))
    second = serve(config(f'"unix:{path}"'), ready=False)
    assert second.wait() == 1
    assert second.lines == [f"poolsrv: listeners.hello: can't listen on unix:{path}: another process listens there"]
    assert echo(socket.AF_UNIX, str(path)) == b"hello"


def test_a_live_socket_whose_queue_is_full_is_live(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        server = serve(config(f'"unix:{path}"'), ready=False)
        assert server.wait() == 1
        assert server.lines[0].endswith("another process listens there")


def test_at_the_end_only_the_servers_own_socket_is_removed(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = serve(config(f'"unix:{path}"'))
    path.rename(tmp_path / "moved")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        assert server.stop() == 0
        assert path.exists()


def test_a_worker_that_ends_does_not_remove_the_socket(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = serve(config(f'"unix:{path}"'))
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGTERM)
    server.wait_for_line("serves", count=4)
    assert echo(socket.AF_UNIX, str(path)) == b"hello"
