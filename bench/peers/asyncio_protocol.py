"""Echo with an asyncio Protocol (callbacks, the faster way), as the library's documentation shows it.

With ``--uvloop`` the same protocol runs on uvloop's loop. ``--processes N``: so many, each with a listening socket of
its own (SO_REUSEPORT).
"""

import asyncio
import os
import sys
from typing import cast


class Echo(asyncio.Protocol):
    """One client's connection."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    # Backpressure: without these two a client that does not read fills the memory.
    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def main() -> None:
    """Serve on the port of the command line."""
    loop = asyncio.get_running_loop()
    shares = "--processes" in sys.argv
    server = await loop.create_server(Echo, "127.0.0.1", int(sys.argv[1]), backlog=4096, reuse_port=shares)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    if "--processes" in sys.argv:
        for _ in range(int(sys.argv[sys.argv.index("--processes") + 1]) - 1):
            if os.fork() == 0:
                break
    if "--uvloop" in sys.argv:
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
