"""Echo with socketserver.ForkingTCPServer: one process per connection, as the library's documentation shows it."""

import socketserver
import sys


class Echo(socketserver.BaseRequestHandler):
    """One client's connection, in a process of its own."""

    def handle(self) -> None:
        try:
            while data := self.request.recv(65536):
                self.request.sendall(data)
        except ConnectionError:
            pass


class Server(socketserver.ForkingTCPServer):
    """With a listening queue as long as the other servers'; the default is 5."""

    allow_reuse_address = True
    request_queue_size = 4096


if __name__ == "__main__":
    with Server(("127.0.0.1", int(sys.argv[1])), Echo) as server:
        server.serve_forever()
