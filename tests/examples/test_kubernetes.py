"""The example for Kubernetes: against the published schemas, and its parts against each other and a real server."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from poolsrv.cli.control_client import ask
from tests.helpers.distributions import install
from tests.helpers.http import Client
from tests.helpers.server import ServerProcess, wait_until

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "kubernetes"
OLDEST = "1.30"  # that docs/kubernetes.md promises
END = 10.0  # seconds from the end of graceful_timeout until the supervisor has killed what is left

RESOURCES: dict[str, Any] = {
    resource["kind"]: resource
    for file in sorted(EXAMPLE.glob("*.yaml"))
    if file.name != "prometheus-adapter.yaml"
    for resource in yaml.safe_load_all(file.read_text())
}
ADAPTER: Any = yaml.safe_load((EXAMPLE / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
POD: Any = RESOURCES["Deployment"]["spec"]["template"]["spec"]
CONTAINER: Any = POD["containers"][0]
TOML: str = RESOURCES["ConfigMap"]["data"]["poolsrv.toml"]
CONFIG = tomllib.loads(TOML)
LABELS = {"app.kubernetes.io/name": "poolsrv"}


@pytest.fixture(scope="module")
def schemas() -> ModuleType:
    """What checks resources. It takes a while to import."""
    return importlib.import_module("kubernetes_validate")


@pytest.mark.parametrize("version", [OLDEST, "the latest"])
def test_the_published_schemas(schemas: ModuleType, version: str) -> None:
    assert len(RESOURCES) == 6
    for resource in RESOURCES.values():
        schemas.validate(resource, version if version == OLDEST else schemas.latest_version(), strict=True)


def test_the_schemas_would_find_a_mistake(schemas: ModuleType) -> None:
    wrong = json.loads(json.dumps(RESOURCES["Service"]))
    wrong["spec"]["ports"][0]["targetPrt"] = "loud"
    with pytest.raises(schemas.ValidationError):
        schemas.validate(wrong, OLDEST, strict=True)


def test_all_of_them_mean_the_same_pods() -> None:
    spec = {kind: resource.get("spec", {}) for kind, resource in RESOURCES.items()}
    assert spec["Deployment"]["template"]["metadata"]["labels"] == LABELS
    assert spec["Service"]["selector"] == LABELS
    for selector in (
        spec["Deployment"]["selector"],
        spec["PodDisruptionBudget"]["selector"],
        spec["NetworkPolicy"]["podSelector"],
        POD["topologySpreadConstraints"][0]["labelSelector"],
    ):
        assert selector == {"matchLabels": LABELS}
    target = spec["HorizontalPodAutoscaler"]["scaleTargetRef"]
    deployment = RESOURCES["Deployment"]
    assert target == {
        "apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": deployment["metadata"]["name"]
    }  # fmt: skip
    assert "replicas" not in spec["Deployment"]


def test_the_ports_are_those_of_the_config() -> None:
    named = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert {name: listener["bind"] for name, listener in CONFIG["listeners"].items()} == {
        name: f":{port}" for name, port in named.items()
    }
    (port,) = RESOURCES["Service"]["spec"]["ports"]
    assert (port["targetPort"], port["port"]) == ("loud", named["loud"])
    rules = RESOURCES["NetworkPolicy"]["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == named.keys()


def probes() -> dict[str, Any]:
    return {kind: CONTAINER[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}


def test_the_probes_ask_what_the_status_answers() -> None:
    assert {kind: probe["httpGet"] for kind, probe in probes().items()} == {
        "startup": {"path": "/readyz", "port": "status"},
        "readiness": {"path": "/readyz", "port": "status"},
        "liveness": {"path": "/healthz", "port": "status"},  # a pod that drains must not be restarted
    }
    assert CONFIG["listeners"]["status"]["handler"] == "status"


def test_the_times_fit_and_the_page_has_them() -> None:
    pool, ready = CONFIG["pool"], probes()["readiness"]
    sleep, grace = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"], POD["terminationGracePeriodSeconds"]
    notice, timeout = pool["drain_notice"], pool["graceful_timeout"]
    unready = ready["failureThreshold"] * ready["periodSeconds"] + ready["timeoutSeconds"]
    assert unready < notice
    closed = sleep + notice
    aborted = closed + timeout
    assert aborted + END < grace
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    times = [float(second) for second in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert times == [0, 0, sleep, sleep + unready, closed, aborted, aborted + END / 2, aborted + END, grace]
    for name, value in (
        ("lifecycle.preStop.sleep", sleep), ("drain_notice", notice), ("graceful_timeout", timeout),
        ("terminationGracePeriodSeconds", grace),
    ):  # fmt: skip
        assert f"`{name}` {value:g} |" in page


def test_the_security_context_is_restricted() -> None:
    """As the Pod Security Standards say for the level *restricted*, and stricter."""
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & POD.keys()
    kinds = {kind for volume in POD["volumes"] for kind in volume.keys() - {"name"}}
    assert kinds <= {"configMap", "emptyDir"}


def test_the_user_is_that_of_the_image() -> None:
    context = POD["securityContext"]
    user = f"{context['runAsUser']}:{context['runAsGroup']}"
    for folder in ("container", "kubernetes"):
        text = (EXAMPLE.parent / folder / "Containerfile").read_text()
        assert re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] == user
    assert context["fsGroup"] == context["runAsGroup"]


def test_what_is_written_is_on_volumes() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in POD["volumes"]}
    writable = {mounts[volume["name"]] for volume in POD["volumes"] if "emptyDir" in volume}
    assert str(Path(CONFIG["pool"]["control"]).parent) in writable
    assert CONFIG["pool"]["chdir"] in writable
    assert "file" not in CONFIG.get("log", {})
    image = (EXAMPLE.parent / "container" / "Containerfile").read_text()
    assert f"POOLSRV_CONFIG={mounts['config']}/{next(iter(RESOURCES['ConfigMap']['data']))}" in image
    config = next(volume for volume in POD["volumes"] if volume["name"] == "config")
    assert config["configMap"]["name"] == RESOURCES["ConfigMap"]["metadata"]["name"]


def test_the_autoscaler_goes_by_metrics_that_there_are() -> None:
    pods = [one["pods"] for one in RESOURCES["HorizontalPodAutoscaler"]["spec"]["metrics"]]
    metrics = {one["metric"]["name"]: one["target"] for one in pods}
    assert metrics.keys() == {rule["name"]["as"] for rule in ADAPTER}
    page = (ROOT / "docs" / "operations.md").read_text()
    for rule in ADAPTER:
        series = re.match(r"\w+", rule["seriesQuery"])
        assert series
        assert f"| `{series[0]}` | gauge |" in page
    assert int(metrics["poolsrv_open_connections"]["averageValue"]) < CONFIG["listeners"]["loud"]["max_connections"]
    millis = int(metrics["poolsrv_busy_cpus"]["averageValue"].removesuffix("m"))
    assert millis < 1000 * int(CONTAINER["resources"]["limits"]["cpu"])


def queries() -> dict[str, str]:
    """What the adapter asks Prometheus, for each metric."""
    found = {}
    for rule in ADAPTER:
        series = rule["seriesQuery"].partition("{")[0]
        text = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.Series>>", series)
        found[rule["name"]["as"]] = text.replace("<<.LabelMatchers>>", 'namespace="site",pod=~"a|b"')
    return found


def test_the_queries_of_the_adapter(tmp_path: Path) -> None:
    rules = [{"record": f"test:{name}", "expr": query} for name, query in queries().items()]
    samples = [
        ('poolsrv_listener_connections{namespace="site",pod="a",listener="loud"}', "1500x9"),
        ('poolsrv_listener_connections{namespace="site",pod="a",listener="status"}', "2x9"),
        ('poolsrv_worker_cpu_ratio{namespace="site",pod="a",worker="0"}', "0.5x9"),
        ('poolsrv_worker_cpu_ratio{namespace="site",pod="a",worker="1"}', "0.75x9"),
        ('poolsrv_worker_cpu_ratio{namespace="other",pod="a",worker="1"}', "1x9"),
    ]
    expected = {"poolsrv_open_connections": 1500, "poolsrv_busy_cpus": 1.25}
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "adapter", "rules": rules}]}))
    trial = {
        "interval": "15s",
        "input_series": [{"series": series, "values": values} for series, values in samples],
        "promql_expr_test": [
            {
                "expr": f"test:{name}",
                "eval_time": "2m",
                "exp_samples": [{"labels": f'test:{name}{{pod="a"}}', "value": value}],
            }
            for name, value in expected.items()
        ],
    }
    (tmp_path / "test.yml").write_text(json.dumps({"rule_files": ["rules.yml"], "tests": [trial]}))
    done = subprocess.run(["promtool", "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with the plugin of the image."""
    text = (ROOT / "examples" / "poolsrv-shout" / "poolsrv_shout.py").read_text()
    install(tmp_path / "site", "poolsrv-shout", {"shout": "poolsrv_shout:Shout"}, text)
    return tmp_path / "site"


def of_this_machine(folder: Path) -> str:
    """The config with free ports, and a folder for what is written."""
    text = re.sub(r'bind = ":\d+"', 'bind = "127.0.0.1:0"', TOML).replace("10.0.0.0/8", "127.0.0.0/8")
    return text.replace("/run/poolsrv", str(folder)).replace("[pool]", "[pool]\nworkers = 1")


def is_refused(server: ServerProcess) -> bool:
    try:
        server.connect("loud").close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.server
def test_a_server_with_the_config_answers_the_probes_and_stops_in_the_order_of_the_page(
    serve: Callable[..., ServerProcess], site: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    server = serve(of_this_machine(run), paths=(site,))
    assert server.exchange("loud", b"hello\n") == b"HELLO!\n"

    def answers(kind: str) -> int:
        with Client(server, "status") as client:
            return client.get(probes()[kind]["httpGet"]["path"]).status

    assert [answers(kind) for kind in probes()] == [200, 200, 200]
    with Client(server, "status") as client:
        figures = client.get("/metrics").body.decode()
    assert 'poolsrv_listener_connections{listener="loud"} ' in figures
    assert 'poolsrv_worker_cpu_ratio{worker="0"} ' in figures
    server.signal(signal.SIGTERM)
    wait_until(lambda: answers("readiness") == 503, "the notice")
    assert answers("liveness") == 200
    assert server.exchange("loud", b"hello\n") == b"HELLO!\n"
    with server.connect("loud") as sock:
        sock.sendall(b"one\n")
        assert sock.recv(100) == b"ONE!\n"
        wait_until(lambda: sum(one.open for one in ask(server.file).listeners) == 1, "the end of the others")
        server.signal(signal.SIGTERM)  # ends the notice
        server.wait_for_line("SIGTERM: stopping, 1 connection")
        wait_until(lambda: is_refused(server), "the end of accepting")
        sock.sendall(b"two\n")
        assert sock.recv(100) == b"TWO!\n"
    assert server.wait() == 0


def test_poolsrv_check_reads_the_config(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "poolsrv.toml"
    file.write_text(TOML)
    done = subprocess.run(
        [sys.executable, "-m", "poolsrv", "check", "--config", str(file)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
