"""``python -m tools.screenshots [FOLDER]``: pictures of the live page for the documentation, in docs/images.

Starts a server with a load on it, of some 100 requests a second for about a minute, kills a worker, and takes the
pictures with Debian's Chromium. Needs the extra "test", and the package chromium.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Final

from playwright.sync_api import BrowserContext, sync_playwright

from poolsrv.testing import Server

IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"
SECONDS: Final = 66.0  # of load: the plots show at least a minute
HOST: Final = "status.example.org"  # what the pictures show for this machine
SHOTS: Final = {  # file to colour scheme, width and height
    "status-light.png": ("light", 1180, 1010),
    "status-dark.png": ("dark", 1180, 1010),
    "status-phone.png": ("dark", 390, 844),
}

CONFIG: Final = """
[pool]
workers = 4
dispatch = "least-connections"
[listeners.www]
bind = "127.0.0.1:8080"
handler = "cgi"
max_connections = 200
[listeners.www.cgi]
root = "programs"
max_programs = 3
[listeners.echo]
bind = "127.0.0.1:7007"
handler = "echo"
max_connections = 6
when_full = "refuse"
[listeners.status]
bind = "127.0.0.1:9187"
handler = "status"
"""
PROGRAMS: Final = {
    "search": "printf 'Content-Type: text/plain\\n\\nfound\\n'",
    "report": "sleep 1\nprintf 'Content-Type: text/plain\\n\\na report\\n'",
}


class Load:
    """Clients in threads, more of them at some times than at others, until the block ends."""

    def __init__(self, server: Server) -> None:
        self._web = server.port("www")
        self._echo = server.port("echo")
        self._over = threading.Event()
        self._began = time.monotonic()
        works = (self._search, self._search, self._search, self._report, self._stay)
        self._threads = [threading.Thread(target=self._repeat, args=(work,), daemon=True) for work in works]

    def _repeat(self, work: object) -> None:
        assert callable(work)
        while not self._over.is_set():
            try:
                work()
            except OSError:
                pass  # refused

    def _get(self, path: str) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self._web, timeout=10)
        try:
            client.request("GET", path)
            client.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass  # cut off by what this script does to the server
        client.close()

    def _search(self) -> None:
        self._get("/search" if int(time.monotonic() * 10) % 5 else "/nothing-here")
        tide = 1 + math.sin((time.monotonic() - self._began) / 6)
        self._over.wait(0.02 + 0.09 * tide)

    def _report(self) -> None:
        clients = [threading.Thread(target=self._get, args=("/report",)) for _ in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        self._over.wait(2.0)

    def _stay(self) -> None:
        """Connections that stay for a while, and now and then one too many."""
        clients = []
        for _ in range(7):
            clients.append(socket.create_connection(("127.0.0.1", self._echo), 10))
            clients[-1].sendall(b"hello" * 100)
            self._over.wait(0.9)
        for client in clients:
            client.close()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *arguments: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(15)


def take(folder: Path) -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory(prefix="poolsrv-") as name:
        programs = Path(name, "programs")
        programs.mkdir()
        for program, text in PROGRAMS.items():
            path = programs / program
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        with Server(CONFIG, Path(name)) as server, Load(server), sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"),
                args=["--no-sandbox", f"--host-resolver-rules=MAP {HOST}:80 {server.addresses('status')[0]}"],
            )
            contexts: dict[str, BrowserContext] = {}
            for file, (scheme, width, height) in SHOTS.items():
                contexts[file] = browser.new_context(
                    color_scheme="dark" if scheme == "dark" else "light",
                    viewport={"width": width, "height": height},
                    is_mobile=width < 600,
                )
                contexts[file].new_page().goto(f"http://{HOST}/")
            _happen(server)
            folder.mkdir(exist_ok=True)
            for file, context in contexts.items():
                shown, (_, width, height) = context.pages[0], SHOTS[file]
                if width > 600:  # to the end of the listeners
                    box = shown.locator("section", has=shown.locator("#listeners")).bounding_box()
                    height = int(box["y"] + box["height"]) + 14 if box else height
                shown.screenshot(
                    path=folder / file, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height}
                )
                print(folder / file, (folder / file).stat().st_size)
            browser.close()


def _happen(server: Server) -> None:
    time.sleep(SECONDS / 2)
    with urllib.request.urlopen(f"http://{server.addresses('status')[0]}/status.json") as answer:
        os.kill(json.load(answer)["workers"][1]["pid"], signal.SIGKILL)
    time.sleep(SECONDS / 2)


if __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
