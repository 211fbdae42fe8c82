"""The part of native/load.c that is needed over TLS: connections that get one answer, and then stay idle.

It talks to the harness as load.c does: it prints `ready`, waits for a line on standard input, and prints the result in
JSON. The connections stay open until the process ends.
"""

import argparse
import json
import select
import socket
import ssl
import sys
import time

SIZE = 128  # bytes of a message
TIMEOUT = 10.0  # seconds for an answer


def answered(sock: ssl.SSLSocket, serial: int) -> bool:
    """Send a message; returns whether it comes back."""
    message = serial.to_bytes(8, "big") * (SIZE // 8)
    sock.sendall(message)
    received = b""
    while len(received) < SIZE and (piece := sock.recv(SIZE - len(received))):
        received += piece
    return received == message


def connected(port: int, context: ssl.SSLContext, serial: int) -> ssl.SSLSocket | None:
    """A connection that has had one answer, or None if that failed."""
    try:
        sock = context.wrap_socket(socket.create_connection(("127.0.0.1", port), TIMEOUT))
        return sock if answered(sock, serial) else None
    except OSError:
        return None


def main() -> None:
    """Open the connections, wait, count those that are still open, and wait for the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=0, help="that send --requests messages, one after the other")
    parser.add_argument("--requests", type=int, default=0, help="of all connections together")
    parser.add_argument("--idle", type=int, default=0, help="that send one message")
    parser.add_argument("--sync", action="store_true", help="always on; accepted as load.c does")
    arguments = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    total = arguments.connections + arguments.idle
    opened = [sock for serial in range(total) if (sock := connected(arguments.port, context, serial)) is not None]
    print("ready", flush=True)
    sys.stdin.readline()
    begun, errors = time.monotonic(), 0
    busy = opened[: arguments.connections]
    requests = arguments.requests if busy else 0
    for serial in range(requests):
        errors += not answered(busy[serial % len(busy)], serial)
    poll = select.poll()
    for sock in opened:
        poll.register(sock, select.POLLIN)
    there = len(opened) - len(poll.poll(0))  # no answer is due, so a readable one has been closed
    result = {"requests": requests - errors, "seconds": time.monotonic() - begun, "bytes": requests * SIZE}
    result |= {"errors": errors, "setup_errors": 0, "connected": there, "not_connected": total - there}
    print(json.dumps(result | {"p50_us": 0, "p99_us": 0}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
