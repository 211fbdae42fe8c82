"""Programs in a sandbox: what they can't do, and that this process stays as it is."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolsrv.core import landlock, system_calls
from poolsrv.core.sandbox import Sandbox
from poolsrv.net.programs import start_program

SYSTEM = [path for path in ("/bin", "/lib", "/lib64", "/usr") if os.path.exists(path)]
PERL = "use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die qq(no socket\\n);"


@pytest.fixture
def run() -> Iterator[Callable[..., str]]:
    """``run(script, ...)`` runs a shell script in a sandbox, and returns its output."""
    made: list[Sandbox] = []

    def run(script: str, stdin: int | None = None, **options: Any) -> str:
        write = [*options.pop("write", ()), "/dev/null"]
        sandbox = Sandbox(execute=SYSTEM, write=write, **options)
        made.append(sandbox)
        reader, writer = os.pipe()
        pid = start_program(
            ["/bin/sh", "-c", script], env=None, cwd="/", descriptors=(stdin, writer, writer), sandbox=sandbox
        )
        os.close(writer)
        with open(reader) as output:
            text = output.read()
        os.waitpid(pid, 0)
        return text.strip()

    yield run
    for sandbox in made:
        sandbox.close()


def test_files(run: Callable[..., str], tmp_path: Path) -> None:
    """Only what is allowed is read, changed and executed. What may be changed can't be executed."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        program = tmp_path / name / "x"
        program.write_text("#!/bin/sh\necho it runs\n")
        program.chmod(0o755)
    script = f"""
        cd {tmp_path}
        for d in a b c; do
            head -c 2 $d/x; echo new 2>/dev/null >$d/y && rm $d/y && mv $d/x $d/z && mv $d/z $d/x && echo " changed $d"
            truncate -s 20 $d/x && echo "cut $d"
            ls $d; $d/x
        done 2>/dev/null
    """
    assert run(script, read=[tmp_path / "a"], write=[tmp_path / "b"]).split("\n") == [
        "#!x",  # what can be read
        "#! changed b",
        "cut b",
        "x",
    ]


def test_no_process_but_its_own(run: Callable[..., str]) -> None:
    """Neither this process, nor a program in another sandbox like its own, can be signalled or looked into."""
    other = Sandbox(execute=SYSTEM, write=["/dev/null"])
    pid = start_program(["/bin/sleep", "1000"], env=None, cwd="/", descriptors=(None, None, None), sandbox=other)
    try:
        script = """
            for pid in %s; do
                kill -0 $pid && echo signals; kill -TERM -- -$pid && echo group
                head -c 1 /proc/$pid/environ && echo environment; readlink /proc/$pid/fd/0
            done 2>/dev/null
            (sleep 1000 & kill -TERM $! && wait $!; echo its own: $?) 2>/dev/null
        """
        assert run(script % f"{os.getpid()} {pid}", read=["/proc"]) == f"its own: {128 + signal.SIGTERM}"
        assert run(f"kill -TERM {pid} && echo it can", isolated=False) == "it can"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        other.close()


def test_no_process_but_its_own_without_a_signal(run: Callable[..., str]) -> None:
    """Limits, priority, scheduling: each can end or starve a process of the same user. Its own are its own."""
    other = Sandbox(execute=SYSTEM, write=["/dev/null"])  # where this process is root: one without capabilities
    pid = start_program(["/bin/sleep", "1000"], env=None, cwd="/", descriptors=(None, None, None), sandbox=other)
    try:
        script = f"""
            for pid in {pid} $$; do
                prlimit --pid $pid --cpu=1000 && echo limits $pid
            done 2>/dev/null
            {{ renice -n 5 -p {pid} && echo priority
            chrt --idle -p 0 {pid} && echo scheduling
            taskset -p 1 {pid} | grep new
            ionice -c 3 -p {pid} && echo input; }} 2>/dev/null
            prlimit --cpu=100 nice -n 1 chrt --batch 0 ionice -c 3 taskset 1 echo its own
        """
        assert run(script, read=["/proc"]) == "its own"
        assert f"limits {pid}\n" in run(script, read=["/proc"], system_calls=False)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        other.close()


def test_nothing_that_outlives_it_or_is_shared(run: Callable[..., str]) -> None:
    """System V memory, messages and semaphores: with a number, any program of the same user gets at them."""
    script = """perl -e '
        my $memory = shmget(0, 4096, 0600) and print "memory\n" and shmctl($memory, 0, 0);
        my $queue = msgget(0, 0600) and print "messages\n" and msgctl($queue, 0, 0);
        my $set = semget(0, 1, 0600) and print "semaphores\n" and semctl($set, 0, 0, 0);
    '"""
    if run(script, system_calls=False).count("\n") == 2:  # not so in some containers
        assert run(script) == ""
    assert run("perl -e 'msgrcv($ARGV[0], my $x, 10, 0, 2048) or print $!+0' 5") == str(errno.EPERM)


def test_nothing_about_files(run: Callable[..., str], tmp_path: Path) -> None:
    """Neither mode, owner, times nor attributes, not even of a file of its user: unless it may write to some file."""
    file = tmp_path / "file"
    file.write_text("x")
    file.chmod(0o600)
    before = file.stat()
    script = f"""
        {{ chmod 666 {file} && echo mode; chown {os.getuid()} {file} && echo owner
        touch -d 2000-01-01 {file} && echo times
        perl -e 'syscall(452, -100, "{file}", 438, 0) == 0 and print "mode\n"'
        perl -e 'open(my $f, "<", "{file}"); chmod(0666, $f) and print "mode\n"'; }} 2>/dev/null
    """
    assert run(script, read=[tmp_path]) == ""
    after = file.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_mode, before.st_mtime_ns, before.st_ctime_ns
    )  # fmt: skip
    assert "mode\nowner\ntimes" in run(script, write=[tmp_path])


def test_no_lease(run: Callable[..., str], tmp_path: Path) -> None:
    """A server process that opens or executes a leased file waits, for up to 45 seconds."""
    (tmp_path / "file").write_text("x")
    script = f"perl -e 'open(my $f, q(<), q({tmp_path}/file)); fcntl($f, 1024, 1) and print q(leased)'"
    assert run(script, read=[tmp_path]) == ""
    assert run(script, read=[tmp_path], system_calls=False) == "leased"


def test_nothing_is_told_of_what_it_may_not_read(run: Callable[..., str], tmp_path: Path) -> None:
    """By inotify(7): names in a directory, and each use of a file."""
    init, watch = (294, 254) if os.uname().machine == "x86_64" else (26, 27)
    script = f"""perl -e 'my $in = syscall({init}, 0); my $name = "{tmp_path}";
        syscall({watch}, $in, $name, 0x100) > 0 and print "watches"'"""
    assert run(script) == ""
    assert run(script, system_calls=False) == "watches"


def test_no_network_by_the_connection_of_a_client(run: Callable[..., str]) -> None:
    """Which a program is given by inetd, line and nph: it can disconnect it, and would have a socket for anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for does in ("listen($s, 1)", f"send($s, 1, 0x20000000, sockaddr_in({port}, INADDR_LOOPBACK))"):
            script = f"""perl -MSocket -e '
                open(my $s, "+<&=", 0); connect($s, pack("x16")); {does} and print "it can"' """
            for options, expected in (({}, ""), ({"connect": None, "bind": None}, "it can")):
                with socket.create_connection(server.getsockname()), server.accept()[0] as connection:
                    assert run(script, stdin=connection.fileno(), **options) == expected


@pytest.mark.parametrize("call", ["send(S, 1, 0x20000000, $to)", "connect(S, $to)"])
@pytest.mark.parametrize("protocol", [0, 262])  # TCP, MPTCP
def test_no_way_around_the_ports(run: Callable[..., str], call: str, protocol: int) -> None:
    """Linux checks ports in connect(2), and of TCP alone. TCP Fast Open connects by a send, and MPTCP becomes TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"""perl -MSocket -e '
            my $to = sockaddr_in({port}, INADDR_LOOPBACK);
            socket(S, PF_INET, SOCK_STREAM, {protocol}) and {call} and print "connected"' """
        assert run(script, connect=[1]) == ""
        server.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            server.accept()
        if not protocol:
            assert run(script, connect=[port]) == ("connected" if call.startswith("connect") else "")
            assert run(script, connect=None, bind=None) == "connected"


def test_no_port_that_the_kernel_chooses(run: Callable[..., str]) -> None:
    """listen(2) without bind(2) takes one, and Linux checks only bind(2)."""
    script = f"perl -e '{PERL} listen($s, 1) or die $!; print qq(listens)'"
    assert "listens" not in run(script, connect=[1])
    assert run(script, connect=[1], bind=[1]) == "listens"
    unix = "perl -MSocket -e 'socket(my $s, PF_UNIX, SOCK_STREAM, 0); listen($s, 1) and print 1'"
    assert run(unix) == ""  # EINVAL: it has no name


def test_no_privileges(run: Callable[..., str]) -> None:
    """Set-user-ID bits do nothing, and no name space gives rights over a copy of the system."""
    assert run("grep -c 'NoNewPrivs:.1' /proc/self/status", read=["/proc"]) == "1"
    assert run("grep '^Cap[EPA]' /proc/self/status | grep -vc 0000000000000000", read=["/proc"]) == "0"
    assert "Operation not permitted" in run("unshare -U true")
    assert run("unshare -U true && echo it can", system_calls=False) == "it can"


@pytest.mark.parametrize(
    ("ports", "expected"),
    [({}, "no socket"), ({"connect": None}, "refused"), ({"connect": [1]}, "refused"), ({"connect": [2]}, "denied")],
)
def test_tcp(run: Callable[..., str], ports: dict[str, Any], expected: str) -> None:
    """A program connects only to the ports that are allowed. Without any it has no network sockets at all."""
    assert expected in run(f"perl -e '{PERL} connect($s, sockaddr_in(1, INADDR_LOOPBACK)) or die $!'", **ports)


def test_listening(run: Callable[..., str]) -> None:
    script = f"perl -e '{PERL} bind($s, sockaddr_in(0, INADDR_LOOPBACK)) or die $!; print qq(bound)'"
    assert run(script, bind=[0]) == "bound"
    assert "denied" in run(script, bind=[1])


def test_unix_sockets_alone(run: Callable[..., str]) -> None:
    """Not even UDP, which no rule for ports covers."""
    script = "perl -MSocket -e 'print socket(my $s, %s, SOCK_DGRAM, 0) ? 1 : 0'"
    assert [run(script % family) for family in ("PF_UNIX", "PF_INET", "PF_INET6")] == ["1", "0", "0"]


def test_this_process_stays_free(run: Callable[..., str], tmp_path: Path) -> None:
    """Only the thread of the start was restricted, and it has ended."""
    threads = threading.active_count(), len(os.listdir("/proc/self/task"))
    assert "NoNewPrivs:\t1" in run("cat /proc/self/status", read=["/proc"])
    (tmp_path / "file").write_text("x")
    assert "NoNewPrivs:\t0" in Path("/proc/self/status").read_text()
    assert (threading.active_count(), len(os.listdir("/proc/self/task"))) == threads


def test_what_can_t_be_started_is_an_error_at_once(tmp_path: Path) -> None:
    program = tmp_path / "x"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    sandbox = Sandbox(execute=SYSTEM, write=["/dev/null"])
    for path, number in ((program, errno.EACCES), (tmp_path / "none", errno.ENOENT)):
        with pytest.raises(OSError, match=os.strerror(number)):
            start_program([str(path)], env=None, cwd="/", descriptors=(None, None, None), sandbox=sandbox)
    sandbox.close()
    missing = Sandbox(read=[tmp_path / "none"])
    with pytest.raises(OSError, match=f"{tmp_path}/none: No such file"):
        start_program(["/bin/true"], env=None, cwd="/", descriptors=(None, None, None), sandbox=missing)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (0, [("", "this kernel has no Landlock")]),
        (2, [("", "6.2"), ("connect", "6.7"), ("bind", "6.7"), ("isolated", "6.12")]),
        (3, [("connect", "6.7"), ("bind", "6.7"), ("isolated", "6.12")]),
        (5, [("isolated", "6.12")]),
        (6, []),
    ],
)
def test_what_the_kernel_lacks(monkeypatch: pytest.MonkeyPatch, version: int, expected: list[tuple[str, str]]) -> None:
    monkeypatch.setattr(landlock, "version", lambda: version)
    found = list(Sandbox().problems())
    assert [key for key, _ in found] == [key for key, _ in expected]
    assert all(words in message for (_, message), (_, words) in zip(found, expected, strict=True))
    if 0 < version < 6:
        assert not list(Sandbox(connect=None, bind=None, isolated=False).problems()) or version < 3


def test_a_missing_library_and_missing_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system_calls, "LIBRARY", "libnone.so.2")
    assert list(Sandbox(write=[tmp_path / "none"]).problems()) == [
        ("write", f"{tmp_path}/none: No such file or directory"),
        ("system_calls", "libnone.so.2 is not installed (Debian: libseccomp2)"),
    ]
    assert list(Sandbox(system_calls=False).problems()) == []
