"""Warm Python on a running server while its interpreters start: before the first request, and with requests waiting."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.http import Client, cgi_listener, pool, write_programs
from tests.helpers.plugins import reset, served
from tests.helpers.server import ServerProcess, children_of, is_alive, open_descriptors, wait_until

pytestmark = pytest.mark.server

HEAD = "print('Content-Type: text/plain\\n', flush=True)\n"
SCRIPTS = {
    "where.py": f"import os\n{HEAD}print(os.getppid())\n",
    # Says in a file that it has run.
    "once.py": f"import os\n{HEAD}with open('ran', 'a') as ran: print(os.environ['QUERY_STRING'], file=ran)\n"
    "print(os.getppid())\n",
    "waits.py": f"import os, time\n{HEAD}open('waits', 'w').close()\n"
    "while not os.path.exists('go'): time.sleep(0.02)\n",
}
GATE = "import os, time\nwhile not os.path.exists({!r}): time.sleep(0.01)\n"
LISTENERS = "opens", "killed", "stopped"
PATIENT = """
from poolsrv_cgi.warm import fork_server
fork_server.PATIENCE = 600.0  # however slow the machine is


class Patient:
    pass
"""


def write_scripts(root: Path) -> None:
    write_programs(root, {name: f"#!{sys.executable}\n{text}" for name, text in SCRIPTS.items()})
    write_programs(root, {"hello.sh": "printf 'Content-Type: text/plain\\n\\nhello'"})


def gated(folder: Path, name: str, **options: Any) -> str:
    """A listener with a directory of its own, whose interpreter is ready once the file `open` is there.

    There are no scripts yet, so none is started with the worker.
    """
    root = folder / name
    root.mkdir()
    (root / f"gate_{name}.py").write_text(GATE.format(f"{root}/open"))
    path = {"PYTHONPATH": str(root)}
    return cgi_listener(name, root=root, warm=True, warm_modules=[f"gate_{name}"], environment=path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[ServerProcess]:
    listeners = [gated(folder, name) for name in LISTENERS]
    (folder / "www").mkdir()
    listeners.append(cgi_listener(keys='plugins = ["patient"]', root=folder / "www"))
    with served(tmp_path_factory.mktemp("server"), PATIENT, *listeners) as running:
        for name in (*LISTENERS, "www"):
            write_scripts(folder / name)
        yield running


def helpers(worker: int, *words: str) -> list[int]:
    """The interpreters of a worker, of those whose commands have these words."""
    found = []
    for pid in children_of(worker):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if "warm/helper.py" in command and all(word in command for word in words):
            found.append(pid)
    return found


def ran(root: Path) -> list[str]:
    """The queries of what has run, sorted."""
    return sorted((root / "ran").read_text().split()) if (root / "ran").exists() else []


def occupy(server: ServerProcess, name: str, folder: Path) -> tuple[Client, int]:
    """Have a request run cold, because the interpreter takes long; the next ones wait. Its client, and the helper."""
    client = Client(server, name)
    client.request("/waits.py")
    wait_until((folder / name / "waits").exists, "the first script")
    (worker,) = server.worker_pids()
    (helper,) = helpers(worker, f"gate_{name}")
    return client, helper


@pytest.mark.parametrize("how", ["opens", "killed", "stopped"])
def test_requests_that_wait(server: ServerProcess, folder: Path, how: str) -> None:
    """Each runs once: in a child of the interpreter once that is ready, cold if it ends or can't go on."""
    root = folder / how
    first, helper = occupy(server, how, folder)
    clients = [Client(server, how) for _ in range(3)]
    for number, client in enumerate(clients):
        client.request(f"/once.py?{number}")
    with Client(server, "www") as other:  # by now the worker has got them
        assert other.get("/hello.sh").status == 200
    assert ran(root) == []
    if how == "opens":
        (root / "open").touch()
    else:
        os.kill(helper, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    parents = {int(client.response().body) for client in clients}
    assert parents == ({helper} if how == "opens" else set(server.worker_pids()))
    assert ran(root) == ["0", "1", "2"]
    (root / "go").touch()
    assert first.response().status == 200
    for client in (first, *clients):
        client.sock.close()


def test_a_client_that_leaves_while_its_request_waits(tmp_path: Path) -> None:
    """The script never runs, its permit is free at once, and no descriptor stays open.

    The server has no other interpreters, since their replacements would take descriptors meanwhile.
    """
    listener = gated(tmp_path, "left", max_programs=2, queue_size=0, keys='plugins = ["patient"]')
    root = tmp_path / "left"
    write_scripts(root)
    with served(tmp_path / "server", PATIENT, listener) as server:
        first, _ = occupy(server, "left", tmp_path)
        (worker,) = server.worker_pids()
        programs = len(children_of(worker))
        with first, Client(server, "left") as other:
            assert other.get("/hello.sh").status == 200
            wait_until(lambda: len(children_of(worker)) == programs, "the end of that program")
            before = len(open_descriptors(worker))
            with Client(server, "left") as leaving:
                assert leaving.get("/hello.sh").status == 200
                leaving.request("/once.py?left", method="POST", body=b"x" * 100)
                assert other.get("/hello.sh").status == 503  # it has come later
                reset(leaving.sock)
            wait_until(lambda: other.get("/hello.sh").status == 200, "its permit")
            wait_until(lambda: len(open_descriptors(worker)) <= before, "its descriptors' end")
            (root / "open").touch()
            (root / "go").touch()
            assert first.response().status == 200
            wait_until(lambda: int(other.get("/once.py?stayed").body) != worker, "a warm interpreter")
    assert {*ran(root)} == {"stayed"}


def test_the_timeout_counts_while_a_request_waits(tmp_path: Path) -> None:
    """Here the first one waits as well, for as long as the others."""
    listener = gated(tmp_path, "overdue", timeout=0.1, keys='plugins = ["patient"]')
    write_scripts(tmp_path / "overdue")
    module = PATIENT.replace("fork_server.PATIENCE", "fork_server.SOON = fork_server.PATIENCE")
    with served(tmp_path / "server", module, listener) as server, Client(server, "overdue") as client:
        assert client.get("/once.py").status == 504
        wait_until(lambda: client.get("/hello.sh").status == 200, "a script that is in time")
    assert ran(tmp_path / "overdue") == []


def test_an_interpreter_that_hangs_at_its_start(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """All get their answers from cold starts in the end, and a server that ends meanwhile leaves nothing."""
    config = pool(graceful_timeout=0.1) + gated(tmp_path, "hangs") + gated(tmp_path, "ends")
    server = serve(config)
    for name in ("hangs", "ends"):
        write_scripts(tmp_path / name)
    first, _ = occupy(server, "hangs", tmp_path)
    clients = [Client(server, "hangs") for _ in range(3)]
    for number, client in enumerate(clients):
        client.request(f"/once.py?{number}")
    (worker,) = server.worker_pids()
    assert [int(client.response().body) for client in clients] == [worker] * 3
    assert ran(tmp_path / "hangs") == ["0", "1", "2"]
    last, helper = occupy(server, "ends", tmp_path)
    with Client(server, "ends") as waiting:
        waiting.request("/once.py?never")
        assert server.stop() == 0
    wait_until(lambda: not is_alive(helper), "the helper's end")
    assert ran(tmp_path / "ends") in ([], ["never"])  # a very slow machine may have been out of patience
    for client in (first, last, *clients):
        client.sock.close()


def test_interpreters_start_with_their_worker(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """The first request finds a child that waits; also after the helper's end, and after a reload."""
    root = tmp_path / "root"
    write_scripts(root)
    server = serve(pool() + cgi_listener(root=root, warm=True))

    def ready(*former: int) -> int:
        """The one helper, with children that wait."""

        def found() -> list[int]:
            (worker,) = server.worker_pids()
            return [pid for pid in helpers(worker) if pid not in former and len(children_of(pid)) >= 8]

        wait_until(found, "a warm interpreter")
        return found()[0]

    helper = ready()
    with Client(server) as client:
        assert int(client.get("/where.py").body) == helper
        os.kill(helper, signal.SIGKILL)
        replacement = ready(helper)
        assert int(client.get("/where.py").body) == replacement
    server.reload()
    wait_until(lambda: not is_alive(replacement), "the former pool's end")
    last = ready()
    with Client(server) as client:
        assert int(client.get("/where.py").body) == last
