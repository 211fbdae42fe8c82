"""`poolsrv explain`: what would answer a client, and why."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolsrv.plugins.explanation import NotExplained, explain, find_listener
from poolsrv.plugins.loader import load
from poolsrv.worker.spec import ServerSpec
from tests.helpers.command_line import invoke
from tests.helpers.distributions import install
from tests.helpers.http import write_programs
from tests.helpers.plugin_configs import serve

CONFIG = """
[listeners.www]
bind = ["127.0.0.1:8080", "unix:www.sock"]
handler = "cgi"
max_connections = 10
[listeners.www.cgi]
prefix = "/cgi-bin/"
root = "bin"
files = "htdocs"
environment = { SECRET = "a\\nb" }
warm = true
limits = { open_files = 64 }
[listeners.raw]
bind = "127.0.0.1:7008"
handler = "cgi"
allow = ["192.0.2.0/24"]
[listeners.raw.cgi]
protocol = "line"
root = "bin"
max_line = 64
[listeners.one]
bind = ":7009"
handler = "cgi"
[listeners.one.cgi]
protocol = "inetd"
program = ["/bin/cat", "-u"]
[listeners.echo]
bind = "0.0.0.0:7010"
handler = "echo"
[listeners.files]
bind = "[::1]:8080"
handler = "files"
[listeners.files.files]
root = "htdocs"
listings = true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    (folder / "poolsrv.toml").write_text(CONFIG)
    programs = {"run.sh": "echo", "plain.txt": "", "bad.sh": "#!/no/such/interpreter\n"}
    write_programs(folder / "bin", programs)
    (folder / "bin" / "plain.txt").chmod(0o644)
    (folder / "bin" / "run.py").write_text(f"#!{sys.executable}\nprint()\n")
    (folder / "bin" / "run.py").chmod(0o755)
    (folder / "htdocs" / "sub").mkdir(parents=True)
    (folder / "htdocs" / "index.html").write_text("hello")
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[list[ServerSpec]]:
    found = [load(folder / "poolsrv.toml")]
    yield found
    found.clear()
    gc.collect()  # or its descriptors would be closed in the middle of some other test


@pytest.fixture
def server(loaded: list[ServerSpec]) -> ServerSpec:
    return loaded[0]


def ask(server: ServerSpec, question: str, name: str | None = None, client: str | None = None) -> dict[str, str]:
    """The rows, of which the last counts where a label comes again."""
    return dict(explain(find_listener(server, question, name), question, client))


def environment(server: ServerSpec, question: str, name: str | None = None) -> dict[str, str]:
    rows = explain(find_listener(server, question, name), question, None)
    return dict(text.split("=", 1) for label, text in rows if label == "environment")


def test_a_program_and_how_the_path_is_divided(server: ServerSpec, folder: Path) -> None:
    found = ask(server, "http://127.0.0.1:8080/cgi-bin/run.sh/more%20of?q=1#part")
    assert found["listener"].startswith("www on 127.0.0.1:8080, unix:")
    assert found["max_connections"] == "10, beyond it clients wait"
    assert found["request"] == "GET /cgi-bin/run.sh/more%20of?q=1"
    assert found["program"] == str(folder / "bin" / "run.sh")
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/cgi-bin/run.sh", "/more of")
    assert found["runs"] == "as a separate process: warm, but not a Python program"
    assert (found["timeout"], found["limits.open_files"]) == ("300 seconds", "64")


def test_the_environment_is_what_the_program_would_get(server: ServerSpec) -> None:
    found = environment(server, "http://127.0.0.1:8080/cgi-bin/run.py?q=1")
    assert (found["QUERY_STRING"], found["SERVER_PORT"], found["HTTP_HOST"]) == ("q=1", "8080", "127.0.0.1:8080")
    assert found["SECRET"] == "a\nb"
    assert "HTTPS" not in found
    assert "HOME" not in found


def test_a_python_program_runs_warm(server: ServerSpec) -> None:
    assert ask(server, "/cgi-bin/run.py", "www")["runs"] == "in a child of a warm interpreter"


@pytest.mark.parametrize(("question", "name"), [("/cgi-bin/bad.sh", "www"), ("bad.sh", "raw")])
def test_a_program_that_could_not_be_started(server: ServerSpec, question: str, name: str) -> None:
    expected = 'its interpreter /no/such/interpreter (line 1, "#!") does not exist'
    assert ask(server, question, name)["problem"] == expected
    assert "problem" not in ask(server, question.replace("bad", "run"), name)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/cgi-bin/none", "404: "),
        ("/cgi-bin/plain.txt", "403: "),
        ("/cgi-bin/%2e%2e/%2e%2e/x", "400: "),
        ("/../x", "400: "),
        ("/a%00b", "400: "),
    ],
)
def test_the_rule_that_refuses(server: ServerSpec, path: str, reason: str) -> None:
    assert ask(server, path, "www")["refused"].startswith(reason)


def test_static_files(server: ServerSpec, folder: Path) -> None:
    for name in ("www", "files"):
        found = ask(server, "/", name)
        assert (found["file"], found["size"]) == (str(folder / "htdocs" / "index.html"), "5 bytes")
        assert found["media type"].startswith("text/html")
        assert ask(server, "/sub", name)["redirect"] == b"/sub/".decode()
    assert ask(server, "/sub/", "www")["refused"].startswith("403: ")
    assert ask(server, "/sub/", "files")["directory"].endswith("htdocs/sub, as a listing")
    assert ask(server, "/.git", "files")["refused"].startswith("404: ")


def test_a_line(server: ServerSpec, folder: Path) -> None:
    assert ask(server, "run.sh", "raw")["program"] == str(folder / "bin" / "run.sh")
    found = ask(server, "run.sh more", "raw")
    assert found["refused"] == "arguments, which this listener does not take"
    assert found["the client gets"] == "refused: arguments are not allowed"
    assert ask(server, "x" * 65, "raw")["refused"] == "the line is over max_line (64 bytes)"


def test_a_connection(server: ServerSpec) -> None:
    assert ask(server, "", "one")["command"] == "/bin/cat -u"
    assert environment(server, "", "one")["TCPREMOTEIP"] == "192.0.2.1"


def test_a_handler_that_does_not_explain(server: ServerSpec) -> None:
    assert ask(server, "hello", "echo")["then"] == 'the handler "echo" answers; it does not explain what'


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise KeyboardInterrupt", r'^the plugin "odd" failed in explain: KeyboardInterrupt \(.*odd\.py, line 4\)$'),
        ("exit(3)", r'^the plugin "odd" failed in explain: SystemExit: 3 \(.*odd\.py, line 4\)$'),
        ("return 3", r'^the plugin "odd" failed in explain: TypeError'),
    ],
)
def test_a_handler_that_fails_to_explain(code: str, message: str, site: Path, tmp_path: Path) -> None:
    install(site, "odd", {"odd": "odd:Odd"})
    body = f"class Odd:\n    def explain(self, question):\n        {code}\n"
    hook = "    @hookimpl\n    def on_readable(self): ...\n"
    (site / "odd.py").write_text(f"from poolsrv import hookimpl\n{body}{hook}")
    server = serve(tmp_path, 'handler = "odd"')
    with pytest.raises(NotExplained, match=message):
        ask(server, "", "www")


def test_a_url_of_the_wrong_scheme_is_refused(server: ServerSpec) -> None:
    found = ask(server, "https://127.0.0.1:8080/cgi-bin/run.sh")
    assert found["refused"] == "this listener does not speak TLS: the URL has to begin with http:"
    assert "program" not in found


def test_a_client_is_judged_by_allow_and_deny(server: ServerSpec) -> None:
    assert ask(server, "run.sh", "raw", "192.0.2.7")["client"] == "192.0.2.7: admitted by allow and deny"
    found = ask(server, "run.sh", "raw", "198.51.100.1")
    assert found["client"].startswith("198.51.100.1: refused, ")
    assert "program" not in found
    found = ask(server, "run.sh", "raw")
    assert found["allow"] == "192.0.2.0/24 (try a client by --client ADDRESS)"
    assert "deny" not in found
    with pytest.raises(NotExplained, match='"nobody" is not an IP address'):
        ask(server, "run.sh", "raw", "nobody")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://127.0.0.1:8080/", "www"),
        ("http://[::1]:8080/", "files"),
        ("http://192.0.2.1:7009/", "one"),
        ("http://[2001:db8::1]:7009/", "one"),
        ("http://example.org:7010/", "echo"),
        ("http://198.51.100.1:7010/", "echo"),
    ],
)
def test_the_listener_of_a_url(server: ServerSpec, url: str, name: str) -> None:
    assert find_listener(server, url, None).config.name == name


@pytest.mark.parametrize(
    ("question", "name", "message"),
    [
        ("http://127.0.0.1:1/", None, "no listener is bound to port 1 of 127.0.0.1"),
        ("http://[::2]:7010/", None, "no listener is bound to port 7010 of ::2"),
        ("http://localhost:8080/", None, "more than one listener is bound to port 8080, expected --listener NAME"),
        ("http://127.0.0.1:x/", None, "is not a URL"),
        ("/run.sh", None, "which listener"),
        ("/", "wwww", 'no listener "wwww" \\(did you mean "www"'),
    ],
)
def test_no_listener(server: ServerSpec, question: str, name: str | None, message: str) -> None:
    with pytest.raises(NotExplained, match=message):
        find_listener(server, question, name)


def test_what_nobody_could_request(server: ServerSpec) -> None:
    with pytest.raises(NotExplained, match="400"):
        ask(server, "http://127.0.0.1:8080/a b", None)


def test_the_command(folder: Path) -> None:
    command = ("explain", "--config", folder / "poolsrv.toml")
    result = invoke(*command, "http://127.0.0.1:8080/cgi-bin/run.sh", cwd=folder, COLUMNS="200")
    assert (result.returncode, result.stderr) == (0, "")
    assert "\nSCRIPT_NAME        /cgi-bin/run.sh\n" in result.stdout
    assert "\nenvironment        SECRET=a\\x0ab\n" in result.stdout
    result = invoke(*command, cwd=folder)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("poolsrv: which listener?")
