"""Checks around every test: it leaves nothing open or running, and its mark ``server`` is true."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings

from poolsrv.core.event_loop import EventLoop
from poolsrv.core.text import encodable
from tests.helpers import kinds, server_mark, wheels
from tests.helpers.http import Client
from tests.helpers.plugins import settle
from tests.helpers.puppet import install_puppet
from tests.helpers.server import ServerProcess, children_of, open_descriptors, wait_until

CELLS = "/memfd:poolsrv-cells (deleted)"  # the descriptor that a plugin for HTTP has
_cells = [0]  # how many there were when garbage was collected
_file = [Path()]  # of the latest test

# On a busy machine anything may take long.
settings.register_profile("poolsrv", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", settings.get_profile("poolsrv"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "poolsrv"))


def pytest_sessionstart() -> None:
    """Test what is meant to be tested, the sources or the compiled wheel, or nothing."""
    if wrong := kinds.others():
        raise pytest.UsageError(f"the tests expect {kinds.EXPECTED}: {', '.join(wrong)}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector: all that is made stays, so it would look at more and more in vain."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """Let only the tests themselves be compiled into files.

    What a test writes, imports and writes again within a second would be found compiled as it was before.
    What has been collected stays: the garbage collector need not look at it after every few tests.
    """
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    server_mark.enter(item)
    try:
        return (yield)
    finally:
        server_mark.leave()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
    before = server_mark.count_starts()
    result = yield
    if server_mark.count_starts() > before:
        server_mark.note_fixture(fixturedef.argname)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    before = server_mark.count_starts()
    yield
    server_mark.check(item, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what is no text: names of files in captured log lines would keep a report from being sent to xdist."""
    report = yield
    report.sections = [(name, encodable(content)) for name, content in report.sections]
    if report.failed and encodable(report.longreprtext) != report.longreprtext:
        report.longrepr = encodable(report.longreprtext)
    return report


@pytest.fixture(scope="session", autouse=True)
def in_the_foreground() -> None:
    """Restore INT and QUIT: a shell starts background jobs with both ignored, and their programs inherit that."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def folders_of_other_pytests() -> Iterator[None]:
    """A pytest that a test starts has its folders elsewhere. Each start makes the root of these private, and a test of
    this one may just need it to be open to another user.
    """
    with TemporaryDirectory(prefix="poolsrv-pytest-") as name:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = name
        os.environ["PYTEST_ADDOPTS"] = "-p no:anyio"  # as in pyproject.toml
        yield
        del os.environ["PYTEST_DEBUG_TEMPROOT"], os.environ["PYTEST_ADDOPTS"]


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare descriptors, children and threads of the test process before and after each test."""
    descriptors = _without_garbage(open_descriptors(os.getpid()), request.path)
    children = children_of(os.getpid())
    threads = threading.active_count()
    yield
    wait_until(lambda: threading.active_count() <= threads, "the end of threads")
    wait_until(lambda: children_of(os.getpid()) == children, "the end of children")
    assert open_descriptors(os.getpid()) == descriptors


def _without_garbage(descriptors: list[str], file: Path) -> list[str]:
    """Plugins that earlier tests have loaded may be garbage: it must not be collected in the middle of this test.

    Those of a module's fixtures become garbage after its last test.
    """
    count = descriptors.count(CELLS)
    if count != _cells[0] or (count and file != _file[0]):
        gc.collect()
        descriptors = open_descriptors(os.getpid())
        _cells[0] = descriptors.count(CELLS)
    _file[0] = file
    return descriptors


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """``serve(config, ...)`` starts a server and waits until it is ready. The server is stopped after the test."""
    numbers = itertools.count()
    with ExitStack() as started:

        def start(
            config: str,
            *,
            ready: bool = True,
            paths: tuple[Path, ...] = (),
            descriptors: int | None = None,
            prefix: tuple[str, ...] = (),
        ) -> ServerProcess:
            folder = tmp_path / f"server{next(numbers)}"
            folder.mkdir()
            server = ServerProcess(config, folder, paths=paths, descriptors=descriptors, prefix=prefix)
            started.enter_context(server)
            return server.wait_ready() if ready else server

        yield start


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    """A client of the file's own server, at its listener ``www``."""
    with Client(server) as client:
        yield client


@pytest.fixture
def settled(server: ServerProcess) -> Iterator[None]:
    """After the test, wait until the file's own server has no other connection."""
    yield
    settle(server)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with the plugin ``puppet``."""
    return install_puppet(tmp_path / "site")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    return wheels.build_wheel(wheels.copy_of_the_sources(folder / "sources"), folder / "built")


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()
