"""The status over HTTP, with a real server and a strict client."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.http import Client, Response
from tests.helpers.server import TIMEOUT, ServerProcess, receive_all, wait_until
from tests.status.conftest import CONFIG

pytestmark = pytest.mark.server

MORE = """
[listeners.full]
bind = "127.0.0.1:0"
handler = "echo"
max_connections = 1
[listeners.others]
bind = "127.0.0.1:0"
handler = "status"
allow = ["192.0.2.1"]
[listeners.unix]
bind = "unix:status.sock"
handler = "status"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(CONFIG + MORE, tmp_path_factory.mktemp("status")) as running:
        yield running.wait_ready()


def get(server: ServerProcess, path: str, *fields: str, method: str = "GET") -> Response:
    with Client(server, "status") as client:
        return client.get(path, *fields, method=method)


def record(server: ServerProcess, path: str, *fields: str) -> Response:
    """Get what the dispatcher has to be asked for; on a slow machine it may be late."""
    while b"does not answer" in (response := get(server, path, *fields)).body:
        pass
    return response


def status_of(server: ServerProcess) -> Any:
    return json.loads(record(server, "/status.json").body)


def samples(server: ServerProcess) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of /metrics, parsed by the library of Prometheus."""
    text = record(server, "/metrics").body.decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value_of(server: ServerProcess, name: str, **labels: str) -> float:
    return samples(server)[name, frozenset(labels.items())]


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_health_and_readiness_have_the_reason_in_words(server: ServerProcess) -> None:
    health = record(server, "/healthz")
    assert health.status == 200
    assert re.fullmatch(rb"well: 2 workers, \d+ connections?\n", health.body)
    assert health.headers[b"content-type"] == b"text/plain; charset=utf-8"
    assert health.headers[b"cache-control"] == b"no-store"
    ready = record(server, "/readyz")
    assert ready.status == 200
    assert re.fullmatch(rb"ready: well: 2 workers, \d+ connections?\n", ready.body)


def test_the_json_is_that_of_the_command(server: ServerProcess) -> None:
    """Also in form: times and counts differ between two moments, and no other byte does."""
    command = [sys.executable, "-m", "poolsrv", "status", "--json", "--config", str(server.file)]
    printed = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=True).stdout
    sent = record(server, "/status.json")
    assert sent.headers[b"content-type"] == b"application/json"
    theirs, ours = json.loads(printed), json.loads(sent.body)
    assert printed == msgspec.json.format(printed, indent=2) + b"\n"
    assert sent.body == msgspec.json.format(sent.body, indent=2) + b"\n"
    assert ours.keys() == theirs.keys()
    assert ours["server"].keys() == theirs["server"].keys()
    assert [worker["pid"] for worker in ours["workers"]] == [worker["pid"] for worker in theirs["workers"]]


def test_the_worker_apart_is_none_of_the_workers(server: ServerProcess) -> None:
    status = status_of(server)
    (apart,) = status["apart"]
    assert len(status["workers"]) == 2
    assert apart["pid"] not in [worker["pid"] for worker in status["workers"]]
    assert (apart["slot"], apart["state"]) == (-1, "serving")
    assert apart["pid"] in server.worker_pids()
    (own,) = (one for one in status["listeners"] if one["name"] == "status")
    assert own["max_connections"] == 256


def test_it_answers_while_all_workers_are_stopped(server: ServerProcess) -> None:
    workers = [worker["pid"] for worker in status_of(server)["workers"]]
    with stopped(*workers):
        wait_until(lambda: get(server, "/healthz").status == 503, "the verdict")
        why = b"down: no worker serves: 2 workers stopped (0, 1)\n"
        assert record(server, "/healthz").body == why
        ready = record(server, "/readyz")
        assert (ready.status, ready.body) == (503, b"not ready: " + why)
        assert [worker["state"] for worker in status_of(server)["workers"]] == ["stopped"] * 2
        assert value_of(server, "poolsrv_workers", state="stopped") == 2
        assert value_of(server, "poolsrv_health", health="down") == 1
    wait_until(lambda: get(server, "/healthz").status == 200, "workers that serve")


def test_it_answers_while_another_listener_takes_nobody(server: ServerProcess) -> None:
    with server.connect("full") as first, server.connect("full"):
        first.sendall(b"hi")
        assert first.recv(100) == b"hi"
        wait_until(lambda: value_of(server, "poolsrv_listener_paused", listener="full") == 1, "a listener that waits")
        assert record(server, "/healthz").status == 200


def test_the_keys_of_a_listener_hold(server: ServerProcess) -> None:
    with contextlib.suppress(ConnectionResetError), server.connect("others") as sock:
        assert sock.recv(100) == b""  # not allowed
    with Client(server, "unix") as client:
        assert client.get("/healthz").status == 200


def test_it_says_that_the_dispatcher_hangs(server: ServerProcess) -> None:
    with Client(server, "status") as client:
        assert client.get("/healthz").status == 200
        with stopped(server.dispatcher_pid):
            answer = client.get("/healthz")
            assert (answer.status, answer.body) == (503, b"down: the dispatcher does not answer within 3 s\n")
            for path in ("/readyz", "/metrics", "/status.json"):
                assert client.get(path).status == 503
        wait_until(lambda: client.get("/healthz").status == 200, "the dispatcher's answer")


def test_metrics_in_both_formats(server: ServerProcess) -> None:
    server.exchange("hello", b"hi")
    name = "poolsrv_accept_to_worker_seconds_count"
    wait_until(lambda: (name, frozenset({("listener", "hello")})) in samples(server), "the worker's report")
    classic = record(server, "/metrics")
    assert classic.headers[b"content-type"].startswith(b"text/plain; version=0.0.4")
    text = classic.body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["poolsrv_connections_accepted"].type == "counter"
    histogram = families["poolsrv_accept_to_worker_seconds"]
    buckets = [one.value for one in histogram.samples if one.name.endswith("_bucket") and one.labels["le"] != "+Inf"]
    assert buckets
    modern = record(server, "/metrics", "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert modern.headers[b"content-type"].startswith(b"application/openmetrics-text; version=1.0.0")
    parsed = parse_openmetrics(modern.body.decode())  # type: ignore[no-untyped-call]
    assert {family.name for family in parsed} >= families.keys()
    assert modern.body.endswith(b"# EOF\n")


def test_promtool_finds_nothing(server: ServerProcess) -> None:
    text = record(server, "/metrics").body
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_events_have_what_the_paths_have(server: ServerProcess) -> None:
    with Client(server, "status") as client:
        client.request("/events")
        head = client.head()
        assert b"content-type: text/event-stream; charset=utf-8\r\n" in head.lower()
        with client.sock.makefile("rb") as stream:
            found: dict[bytes, list[Any]] = {b"health": [], b"status": []}
            kind = b""
            while len(found[b"status"]) < 2:
                line = stream.readline()
                if line.startswith(b"event: "):
                    kind = line[7:-1]
                elif line.startswith(b"data: "):
                    found[kind].append(json.loads(line[6:]))
    assert found[b"health"][0]["health"] == "well"
    assert found[b"health"][0]["is_ready"] is True
    assert found[b"status"][0].keys() == status_of(server).keys()
    assert found[b"status"][0]["time"] < found[b"status"][1]["time"]


def test_other_paths_and_methods(server: ServerProcess) -> None:
    for path in ("/nothing", "/metrics/", "/../status.json", "/%73tatus.json"):
        assert get(server, path).status == 404
    refused = get(server, "/metrics", method="POST")
    assert (refused.status, refused.headers[b"allow"]) == (405, b"GET, HEAD")
    head = get(server, "/healthz", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    events = get(server, "/events", method="HEAD")
    assert events.headers[b"content-type"] == b"text/event-stream; charset=utf-8"


def test_the_page_has_a_strict_policy_and_an_etag(server: ServerProcess) -> None:
    page = get(server, "/")
    assert page.headers[b"content-type"] == b"text/html; charset=utf-8"
    policy = page.headers[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers[b"x-content-type-options"] == b"nosniff"
    again = get(server, "/", f"If-None-Match: {page.headers[b'etag'].decode()}")
    assert (again.status, again.body) == (304, b"")


def test_a_reload_and_deaths_leave_the_counters_and_another_worker_answers(server: ServerProcess) -> None:
    server.exchange("hello", b"hi")
    before = samples(server)
    with Client(server, "status") as client:
        client.request("/events")
        client.request("/events")  # waits on the same connection until the first stream ends
        client.head()
        server.reload()
        streams = receive_all(client.sock)
    assert streams.count(b"HTTP/1.1 200 OK") == 1
    assert streams.endswith(b"retry: 100\n\n\r\n0\r\n\r\n")
    pids = [worker["pid"] for worker in status_of(server)["workers"]]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    (apart,) = status_of(server)["apart"]
    os.kill(apart["pid"], signal.SIGKILL)
    server.wait_for_line(rf"worker apart \(pid {apart['pid']}\) killed by SIGKILL")
    wait_until(lambda: get(server, "/healthz").status == 200, "new workers")
    after = samples(server)
    for (name, labels), value in before.items():
        if name.endswith(("_total", "_count", "_sum", "_bucket")):
            assert after[name, labels] >= value, name
    assert value_of(server, "poolsrv_pool_generation") == 2
    assert value_of(server, "poolsrv_last_reload_successful") == 1
