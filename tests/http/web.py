"""A plugin for tests of the HTTP library: one method for each path, on a running server."""

WEB = """
import tempfile
from poolsrv_http import HttpOptions, HttpPlugin


class Web(HttpPlugin):
    class Options(HttpOptions):
        greeting: str = "hello"

    def on_request(self, request, response):
        name = request.path.strip("/")
        getattr(self, name if name.isalpha() else "missing", self.missing)(request, response)

    def missing(self, request, response):
        response.error(404)

    def hello(self, request, response):
        fields = {"Content-Type": "text/plain", "X-Query": request.query, "X-Agent": request.header("User-Agent") or ""}
        response.respond(200, self.options.greeting.encode(), fields)

    def head(self, request, response):
        head = request.head
        text = [request.method, request.target, request.host.decode(), str(request.version), request.origin.user]
        text.append(request.origin.endpoints.remote_address)
        response.respond(200, "\\n".join(text).encode())

    def echo(self, request, response):
        # Piece by piece; a client that does not take its answer is not read from.
        body = request.body

        def piece(data):
            response.send(data)
            if response.congested:
                body.pause()

        response.on_writable = body.resume
        body.read(piece, response.end)
        response.start(200, length=body.length)

    def slowly(self, request, response):
        # One piece for each turn of a timer.
        body = request.body
        got = []

        def piece(data):
            got.append(len(data))
            body.pause()
            request.conn.call_later(0.03, body.resume)

        body.read(piece, lambda: response.respond(200, b"%d %d" % (len(got), sum(got))))

    def whole(self, request, response):
        request.body.collect(lambda: response.respond(200, request.body.contents()), limit=100_000)

    def large(self, request, response):
        request.body.collect(lambda: response.respond(200, b"%d" % len(request.body.contents())))

    def pieces(self, request, response):
        response.start(200, [("X-Two", "1"), ("X-Two", "2")], first=b"one ")
        response.send(b"two ")
        request.conn.call_later(0.01, lambda: (response.send(b"three"), response.end()))

    def length(self, request, response):
        response.start(200, length=5)
        response.send(b"hello, and this is too much")
        response.end()

    def short(self, request, response):
        response.start(200, length=50, first=b"hello")
        response.end()

    def cut(self, request, response):
        response.start(200, first=b"hello")
        response.end(complete=False)

    def endless(self, request, response):
        sent = [0]

        def more():
            while not response.congested:
                response.send(bytes(65536))
                sent[0] += 65536

        response.on_writable = more
        response.on_cancel = lambda: request.conn.log.info("cancelled after %d", sent[0])
        response.start(200)
        more()

    def file(self, request, response):
        reader, writer = os.pipe()
        child = request.conn.spawn(["/bin/sh", "-c", "head -c 300000 /dev/zero"], stdout=PIPE)
        os.close(reader), os.close(writer)

        def moved():
            response.end()

        response.start(200, length=300_000)
        if not response.relay_from(child.stdout, moved):
            raise AssertionError("not moved")

    def late(self, request, response):
        request.conn.call_later(0.05, lambda: response.respond(200, b"late"))

    def twice(self, request, response):
        response.respond(200, b"once")
        response.respond(200, b"twice")
        response.send(b"more")
        response.end()
        response.error(500)

    def restart(self, request, response):
        response.start(200, first=b"x")
        response.start(200)

    def split(self, request, response):
        try:
            response.respond(200, b"", {"X": "a\\r\\nSet-Cookie: b"})
        except ValueError as error:
            response.respond(500, str(error).encode())

    def framing(self, request, response):
        try:
            response.start(200, {"Transfer-Encoding": "chunked"})
        except ValueError as error:
            response.respond(500, str(error).encode())

    def raises(self, request, response):
        raise RuntimeError("a fault of the handler")

    def never(self, request, response):
        request.body.read(lambda data: None, lambda: None)
        response.on_cancel = lambda: request.conn.log.info("never: cancelled, ended=%s", response.ended)

    def unread(self, request, response):
        response.respond(200, b"unread")

    def work(self, request, response):
        # Goes on after the response.
        response.hold()
        outcome = response.outcome
        outcome.program, outcome.queued = "worker", 0.0

        def done():
            outcome.returncode = 3
            response.release()

        response.respond(200, b"begun")
        request.conn.worker.call_later(0.2, done)

    def raw(self, request, response):
        conn = response.take_over()
        conn.send(b"HTTP/1.1 299 Raw\\r\\n\\r\\nraw")
        response.end()

    def redirect(self, request, response):
        try:
            response.error(301, location="/a\\r\\nSet-Cookie: b")
        except ValueError:
            response.error(301, location="/hello?" + request.query)

    def unchanged(self, request, response):
        response.respond(304, headers={"ETag": '"x"'})


class Say(HttpPlugin):
    # For the hostile corpus: what has been understood of each request.
    def on_request(self, request, response):
        def done():
            text = [request.method, request.path, request.query, str(len(request.body.contents()))]
            response.respond(200, "\\n".join(text).encode())

        request.body.collect(done)
"""
