"""Echo with gevent's StreamServer: one greenlet per connection, as its documentation shows it."""

import socket
import sys

from gevent.server import StreamServer


def handle(client: socket.socket, _address: object) -> None:
    """Echo until the client has finished sending."""
    try:
        while data := client.recv(65536):
            client.sendall(data)
    except ConnectionError:
        pass


if __name__ == "__main__":
    StreamServer(("127.0.0.1", int(sys.argv[1])), handle, backlog=4096).serve_forever()
