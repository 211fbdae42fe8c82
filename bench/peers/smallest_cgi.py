"""The smallest server of CGI programs over HTTP/1.1 that Python allows: the limit for any that is written in Python.

It does what no such server can do without: it waits with epoll, takes a request head apart, starts the program in a
process group of its own with an environment and two pipes, reads both to their end, waits for the program, and answers
on a connection that stays open. It checks nothing, limits nothing, counts and logs nothing, waits for no client and
ends no program: never put it on a network.

With `--warm`, it forks itself for each request and runs a compiled script in the child, with a pipe for its output.

usage: smallest_cgi.py [--warm] PORT DIRECTORY
"""

import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from types import CodeType

HEAD_END = b"\r\n\r\n"
COMMON = {
    b"GATEWAY_INTERFACE": b"CGI/1.1",
    b"PATH": b"/usr/local/bin:/usr/bin:/bin",
    b"SERVER_NAME": b"127.0.0.1",
    b"SERVER_PROTOCOL": b"HTTP/1.1",
    b"SERVER_SOFTWARE": b"smallest",
}
ANSWER_START = b"HTTP/1.1 200 OK\r\nServer: smallest\r\n"

Start = Callable[[str, dict[bytes, bytes]], tuple[int, list[int]]]


class Exchange:
    """A request whose program runs: `pipes` of its pipes are still open, the first of which is its output."""

    def __init__(self, client: int, pid: int, pipes: list[int]) -> None:
        self.client = client
        self.pid = pid
        self.output = pipes[0]
        self.pipes = len(pipes)
        self.answer = ANSWER_START


def environment_of(head: bytes) -> dict[bytes, bytes]:
    """The environment of a program, RFC 3875 section 4.1."""
    request, *fields = head.split(b"\r\n")
    method, target, _ = request.split(b" ")
    path, _, query = target.partition(b"?")
    environment = {**COMMON, b"REQUEST_METHOD": method, b"SCRIPT_NAME": path, b"QUERY_STRING": query}
    for field in fields:
        name, _, value = field.partition(b":")
        environment[b"HTTP_" + name.upper().replace(b"-", b"_")] = value.strip()
    return environment


def cold() -> Start:
    """Start a program as a process of its own."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    defaults = [signal.SIGPIPE]

    def start(program: str, environment: dict[bytes, bytes]) -> tuple[int, list[int]]:
        output, its_output = os.pipe2(os.O_CLOEXEC)
        errors, its_errors = os.pipe2(os.O_CLOEXEC)
        actions = [
            (os.POSIX_SPAWN_DUP2, null, 0),
            (os.POSIX_SPAWN_DUP2, its_output, 1),
            (os.POSIX_SPAWN_DUP2, its_errors, 2),
        ]
        pid = os.posix_spawn(program, [program], environment, file_actions=actions, setpgroup=0, setsigdef=defaults)
        os.close(its_output)
        os.close(its_errors)
        return pid, [output, errors]

    return start


def warm() -> Start:
    """Run a script in a fork of this process."""
    codes: dict[str, CodeType] = {}

    def start(program: str, environment: dict[bytes, bytes]) -> tuple[int, list[int]]:
        if program not in codes:
            with open(program, "rb") as file:
                codes[program] = compile(file.read(), program, "exec")
            gc.collect()
            gc.freeze()
        output, its_output = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if not pid:
            os.setpgid(0, 0)
            os.dup2(its_output, 1)
            os.environb.update(environment)
            exec(codes[program], {"__name__": "__main__", "__file__": program})
            sys.stdout.flush()
            os._exit(0)
        os.close(its_output)
        return pid, [output]

    return start


def read(client: int) -> bytes:
    """What has come; nothing at the end, and if the client has reset the connection."""
    try:
        return os.read(client, 65536)
    except ConnectionResetError:
        return b""


def serve(port: int, directory: str, start: Start) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    clients: dict[int, bytes] = {}
    running: dict[int, Exchange] = {}
    while True:
        for fd, _ in epoll.poll():
            exchange = running.get(fd)
            if exchange is not None:
                data = os.read(fd, 65536)
                if data:
                    if fd == exchange.output:
                        exchange.answer += data
                    continue
                epoll.unregister(fd)
                os.close(fd)
                del running[fd]
                exchange.pipes -= 1
                if not exchange.pipes:
                    os.wait4(exchange.pid, 0)
                    if exchange.client in clients:
                        os.write(exchange.client, exchange.answer)
            elif fd == listener.fileno():
                client = listener.accept()[0].detach()
                clients[client] = b""
                epoll.register(client, select.EPOLLIN)
            elif data := read(fd):
                *heads, clients[fd] = (clients[fd] + data).split(HEAD_END)
                for head in heads:
                    environment = environment_of(head)
                    pid, pipes = start(directory + os.fsdecode(environment[b"SCRIPT_NAME"]), environment)
                    exchange = Exchange(fd, pid, pipes)
                    for pipe in pipes:
                        running[pipe] = exchange
                        epoll.register(pipe, select.EPOLLIN)
            else:
                epoll.unregister(fd)
                del clients[fd]
                os.close(fd)


def main() -> None:
    make = warm if sys.argv[1] == "--warm" else cold
    port, directory = sys.argv[-2:]
    serve(int(port), directory, make())


main()
