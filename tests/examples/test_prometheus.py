"""The example for Prometheus: with promtool, and a real Prometheus that scrapes a server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.http import Client
from tests.helpers.load import Load
from tests.helpers.server import TIMEOUT, ServerProcess, free_port, wait_until

EXAMPLE = Path(__file__).parents[2] / "examples" / "prometheus"
COUNTED = ("_total", "_bucket", "_count", "_sum")

CONFIG = """
[pool]
workers = 2
[listeners.www]
bind = "127.0.0.1:0"
handler = "files"
[listeners.www.files]
root = "{root}"
[listeners.status]
bind = "127.0.0.1:0"
handler = "status"
"""


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> list[str]:
    """The queries of the dashboard, as they are with one choice of its variables."""
    dashboard = json.loads((EXAMPLE / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [one["expr"] for one in dashboard["annotations"]["list"]]
    return [re.sub(r"\$(job|instance|listener)", ".*", one.replace("$__rate_interval", "1m")) for one in queries]


def test_the_rules_raise_their_alerts() -> None:
    promtool("check", "config", str(EXAMPLE / "prometheus.yml"))
    promtool("test", "rules", str(EXAMPLE / "poolsrv.rules.test.yml"))


def test_each_alert_has_its_trial() -> None:
    alerts = re.findall(r"- alert: (\w+)", (EXAMPLE / "poolsrv.rules.yml").read_text())
    trials = re.findall(r"alertname: (\w+)\n +exp_alerts:", (EXAMPLE / "poolsrv.rules.test.yml").read_text())
    assert alerts
    assert sorted(alerts) == sorted(trials)


def test_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    assert len(expressions()) > 30
    rules = [{"record": f"dashboard:query:{index}", "expr": expr} for index, expr in enumerate(expressions())]
    file = tmp_path / "dashboard.json"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(file))


def test_the_dashboard_fits_its_grid() -> None:
    panels = json.loads((EXAMPLE / "grafana-dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24


def test_the_metrics_that_are_asked_for_are_documented() -> None:
    page = (EXAMPLE.parents[1] / "docs" / "operations.md").read_text()
    documented = {
        (f"{name}_total" if kind == "counter" and not name.endswith("_total") else name)
        for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.MULTILINE)
    }
    rules = (EXAMPLE / "poolsrv.rules.yml").read_text()
    queries = [*expressions(), *re.findall(r"expr: (?:\|\n)?((?:.|\n)*?)\n +(?:for|labels):", rules)]
    asked = {name for one in queries for name in re.findall(r"\b((?:poolsrv|http|cgi)_\w+)", one)}
    assert len(asked) > 25
    assert {re.sub("_(bucket|count)$", "", name) for name in asked} <= documented


class Prometheus:
    """A real one that scrapes a server four times a second, with the rules of the example."""

    def __init__(self, folder: Path, server: ServerProcess) -> None:
        self._address = f"127.0.0.1:{free_port()}"
        text = (EXAMPLE / "prometheus.yml").read_text().replace("15s", "250ms")
        text = text.replace("127.0.0.1:9187", server.addresses("status")[0])
        file = folder / "prometheus.yml"
        file.write_text(text)
        (folder / "poolsrv.rules.yml").write_text((EXAMPLE / "poolsrv.rules.yml").read_text())
        arguments = (f"--config.file={file}", f"--storage.tsdb.path={folder}/data", "--log.level=error")
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["prometheus", *arguments, f"--web.listen-address={self._address}"], stdout=log, stderr=log
            )

    def get(self, path: str, **query: str) -> Any:
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None  # it has not started yet

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        found = self.get("query", query=expression) or {"result": []}
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def scraped(self) -> float:
        """How often the server has been scraped with success."""
        return sum(value for _, value in self.query('sum_over_time(up{job="poolsrv"}[1h])'))

    def wait_for_scrapes(self, count: int) -> None:
        before = self.scraped()
        wait_until(lambda: self.scraped() >= before + count, "scrapes")

    def close(self) -> None:
        self._process.kill()
        self._process.wait(TIMEOUT)


@pytest.fixture
def watched(serve: Any, tmp_path: Path) -> Iterator[tuple[ServerProcess, Prometheus]]:
    (tmp_path / "page.txt").write_text("hello")
    server = serve(CONFIG.format(root=tmp_path))
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with closing(Prometheus(folder, server)) as prometheus:
        yield server, prometheus


@pytest.mark.server
def test_counters_never_go_back_over_a_death_and_a_reload(watched: tuple[ServerProcess, Prometheus]) -> None:
    server, prometheus = watched
    host, port = server.addresses("www")[0].rsplit(":", 1)
    with Load((host, int(port)), "/page.txt", keep_alive=1, single=1) as load:
        prometheus.wait_for_scrapes(3)
        with Client(server, "status") as client:
            pid = json.loads(client.get("/status.json").body)["workers"][0]["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: prometheus.query('poolsrv_worker_ends_total{how="killed"} == 1'), "the death")
        server.reload()
        wait_until(lambda: prometheus.query("poolsrv_pool_generation == 2"), "the reload")
        prometheus.wait_for_scrapes(3)
        before = load.count
        wait_until(lambda: load.has_gone_on(before), "more requests")
        accepted = 'max_over_time(poolsrv_connections_accepted_total{listener="www"}[1h]) > 3'
        wait_until(lambda: prometheus.query(accepted), "more than three connections")
    names = [name for name in prometheus.get("label/__name__/values") if name.endswith(COUNTED)]
    assert {"poolsrv_connections_accepted_total", "http_response_seconds_bucket"} <= set(names)
    gone_back = {name: prometheus.query(f'resets({name}{{job="poolsrv"}}[1h]) > 0') for name in names}
    assert not any(gone_back.values()), gone_back
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 10
    assert {(rule["name"], rule["health"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"} == set()
