from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolsrv.config.errors import ConfigErrors
from poolsrv.config.model import LISTENER_KEYS
from poolsrv.core.words import shortlist
from poolsrv.plugins import discovery
from poolsrv.plugins.loader import load
from poolsrv.worker.spec import ServerSpec
from tests.helpers.distributions import install
from tests.helpers.server import wait_until

PLAIN = """
    from poolsrv import hookimpl

    class Plain:
        @hookimpl
        def on_readable(self, conn):
            return None
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on ``sys.path``; what is imported from it is forgotten afterwards."""
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.syspath_prepend(str(directory))
    yield directory
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(directory)):
            del sys.modules[name]


def write(tmp_path: Path, lines: str) -> Path:
    path = tmp_path / "test.toml"
    path.write_text(lines if "[listeners" in lines else f'[listeners.www]\nbind = ":0"\n{lines}\n')
    return path


def serve(tmp_path: Path, lines: str) -> ServerSpec:
    return load(write(tmp_path, lines))


def errors(tmp_path: Path, lines: str) -> list[str]:
    """The messages of a config, without the file's name."""
    path = write(tmp_path, lines)
    with pytest.raises(ConfigErrors) as error:
        load(path)
    return [line.removeprefix(f"{path}: ") for line in str(error.value).splitlines()]


# -- what a right config gives


def test_only_the_plugins_that_the_config_names_are_imported(site: Path, tmp_path: Path) -> None:
    install(site, "plain-one", {"plain": "plain_one:Plain"}, PLAIN)
    install(site, "other-one", {"other": "other_one:Plain"}, PLAIN)
    server = serve(tmp_path, 'handler = "plain"')
    (listener,) = server.listeners
    (plugin,) = listener.hooks.plugins
    assert plugin.name == "plain"
    assert type(plugin.instance).__name__ == "Plain"
    assert "plain_one" in sys.modules
    assert "other_one" not in sys.modules


def test_each_listener_has_an_instance_of_its_own_in_calling_order(site: Path, tmp_path: Path) -> None:
    install(site, "plain-one", {"a": "plain_one:Plain", "b": "plain_one:Plain", "c": "plain_one:Plain"}, PLAIN)
    server = serve(
        tmp_path,
        '[listeners.x]\nbind = ":0"\nhandler = "c"\nplugins = ["b", "a"]\n[listeners.y]\nbind = ":0"\nhandler = "c"',
    )
    x, y = server.listeners
    assert [plugin.name for plugin in x.hooks.plugins] == ["b", "a", "c"]
    assert [plugin.name for plugin in y.hooks.plugins] == ["c"]
    assert x.hooks.plugins[-1].instance is not y.hooks.plugins[-1].instance
    assert [x.config, y.config] == list(server.config.listeners)


def test_options_are_decoded_with_paths_relative_to_the_file(site: Path, tmp_path: Path) -> None:
    install(
        site,
        "many-kinds",
        {"many": "many_kinds:Many"},
        """
        from __future__ import annotations
        from pathlib import Path, PurePosixPath
        from typing import Literal
        import msgspec
        from poolsrv import hookimpl

        class Place(msgspec.Struct):
            root: Path
            index: str = "index.html"

        class Many:
            class Options(msgspec.Struct, frozen=True):
                root: Path
                maybe: Path | None = None
                none: Path | None = None
                several: list[Path] = []
                by_name: dict[str, tuple[Path, ...]] = {}
                places: dict[str, Place] = {}
                pure: PurePosixPath = PurePosixPath("left/alone")
                seconds: float = 1.5
                kind: Literal["a", "b"] = "a"
                quick_mode: bool = msgspec.field(name="quick", default=False)

            def __init__(self, options):
                self.options = options

            @hookimpl
            def on_readable(self, conn):
                return None
        """,
    )
    server = serve(
        tmp_path,
        """
        [listeners.www]
        bind = ":0"
        handler = "many"
        [listeners.www.many]
        root = "www"
        maybe = "/absolute"
        several = ["a", "../b"]
        by_name = { x = ["c"] }
        places.home = { root = "home" }
        seconds = 3
        quick = true
        """,
    )
    (plugin,) = server.listeners[0].hooks.plugins
    options = plugin.instance.options  # type: ignore[attr-defined]
    assert options.root == tmp_path / "www"
    assert options.maybe == Path("/absolute")
    assert options.none is None
    assert options.several == [tmp_path / "a", tmp_path / "../b"]
    assert options.by_name == {"x": (tmp_path / "c",)}
    assert options.places["home"].root == tmp_path / "home"
    assert options.places["home"].index == "index.html"
    assert str(options.pure) == "left/alone"
    assert (options.seconds, type(options.seconds)) == (3.0, float)
    assert options.quick_mode is True


HALF_CLOSE = """
    from poolsrv import hookimpl

    class Silent:
        @hookimpl
        def on_readable(self, conn):
            return None

    class Aborts(Silent):
        half_close = "abort"

    class Decides(Silent):
        def __init__(self):
            self.half_close = "abort"

    class Wrong(Silent):
        half_close = "never"
"""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('handler = "silent"', "finish"),
        ('handler = "aborts"', "abort"),
        ('handler = "decides"', "abort"),
        ('handler = "aborts"\nhalf_close = "finish"', "finish"),
        ('handler = "silent"\nplugins = ["aborts"]', "finish"),
    ],
)
def test_half_close_is_the_handlers_unless_the_config_has_one(
    lines: str, expected: str, site: Path, tmp_path: Path
) -> None:
    install(site, "hc", {"silent": "hc:Silent", "aborts": "hc:Aborts", "decides": "hc:Decides"}, HALF_CLOSE)
    assert serve(tmp_path, lines).listeners[0].half_close == expected


def test_a_half_close_that_means_nothing_is_an_error(site: Path, tmp_path: Path) -> None:
    install(site, "hc", {"wrong": "hc:Wrong"}, HALF_CLOSE)
    assert errors(tmp_path, 'handler = "wrong"') == [
        "listeners.www.handler: the plugin \"wrong\" (hc:Wrong, of hc 1.0) has half_close = 'never',"
        ' expected "finish", "abort" or "timely"'
    ]


BELIEVES = """
    from poolsrv import hookimpl

    class Plain:
        @hookimpl
        def on_readable(self, conn):
            return None

    class Believes(Plain):
        def __init__(self):
            self.believes_proxies = True
"""
MISSING = "listeners.www.trusted_proxies: missing, expected the networks of the proxies, such as"
NOTHING = (
    "listeners.www.trusted_proxies: has no effect alone, expected `proxy_protocol` beside it, or a plugin's"
    " options for what proxies say"
)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('handler = "believes"', MISSING),
        ('handler = "believes"\ntrusted_proxies = []', MISSING),
        ('handler = "believes"\nproxy_protocol = false', MISSING),
        ('handler = "believes"\nproxy_protocol = true', MISSING),
        ('handler = "plain"\nplugins = ["believes"]', MISSING),
        ('handler = "plain"\ntrusted_proxies = ["::1"]', NOTHING),
        ('handler = "plain"\ntrusted_proxies = []', NOTHING),
    ],
)
def test_proxies_that_are_believed_have_to_be_named(lines: str, message: str, site: Path, tmp_path: Path) -> None:
    install(site, "bp", {"plain": "bp:Plain", "believes": "bp:Believes"}, BELIEVES)
    [found] = errors(tmp_path, lines)
    assert found.startswith(message)


@pytest.mark.parametrize(
    "lines",
    [
        'bind = ":0"\nhandler = "believes"\ntrusted_proxies = ["192.0.2.0/24"]',
        'bind = "unix:a.sock"\nhandler = "believes"',
        'bind = ":0"\nhandler = "believes"\ntrusted_proxies = ["::1"]\nproxy_protocol = true',
        'bind = ":0"\nhandler = "plain"\ntrusted_proxies = ["::1"]\nproxy_protocol = false',
    ],
)
def test_proxies_that_are_named(lines: str, site: Path, tmp_path: Path) -> None:
    install(site, "bp", {"plain": "bp:Plain", "believes": "bp:Believes"}, BELIEVES)
    assert serve(tmp_path, f"[listeners.www]\n{lines}\n").listeners


# -- plugins that can't be used


def test_a_misspelt_plugin_gets_the_nearest_name(site: Path, tmp_path: Path) -> None:
    (message,) = errors(tmp_path, 'handler = "ecoh"')
    assert message.startswith('listeners.www.handler: no plugin "ecoh" is installed (did you mean "echo"?), expected "')


def test_plugins_that_can_not_be_used_are_not_among_those_expected(site: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    install(site, "lost", {"lost": "no_such_module:Lost"})
    install(site, "wrong", {"wrong": "wrong:Wrong"}, "def Wrong(: pass")
    install(site, "raises", {"raises": "raises:Raises"}, f"open({str(ran)!r}, 'w')\nprint('here')\nimport no_such_one")
    install(site, "ends", {"ends": "ends:Ends"}, "import os\nos.abort()")
    install(site, "fine", {"fine": "fine:Fine"}, "class Fine: pass")
    (message,) = errors(tmp_path, 'handler = "nothing_near"')
    expected = message.partition(", expected ")[2]
    assert '"cgi"' in expected
    assert '"echo"' in expected
    for name in ("lost", "wrong", "raises", "ends"):
        assert f'"{name}"' not in expected
    assert "raises" not in sys.modules


def test_a_distribution_whose_metadata_is_no_text_hides_no_other(site: Path, tmp_path: Path) -> None:
    install(site, "odd", {"odd": "odd:Odd"})
    (site / "odd-1.0.dist-info" / "entry_points.txt").write_bytes(b"[poolsrv]\ncaf\xe9 = odd:Odd\n")
    assert "odd" not in discovery.installed()
    assert {"cgi", "echo"} <= discovery.installed().keys()
    (message,) = errors(tmp_path, 'handler = "ecoh"')
    assert message.startswith('listeners.www.handler: no plugin "ecoh" is installed (did you mean "echo"?)')


def test_one_name_in_two_distributions_is_an_error_that_names_both(site: Path, tmp_path: Path) -> None:
    install(site, "first", {"twin": "first:Plain"}, PLAIN)
    install(site, "second", {"twin": "second:Plain"}, PLAIN)
    (message,) = errors(tmp_path, 'handler = "twin"')
    ending = " is offered by {} and {}, expected one of them"
    assert message.endswith((ending.format("first", "second"), ending.format("second", "first")))
    assert "first" not in sys.modules


def where(site: Path, line: int) -> str:
    return f"({site}/bad.py, line {line})"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("import nothere_at_all", "can't be imported: ModuleNotFoundError: No module named 'nothere_at_all' {1}"),
        ("x = 1\n1 / 0", "can't be imported: ZeroDivisionError: division by zero {2}"),
        ("\nclass Bad(:\n    pass", "can't be imported: SyntaxError: invalid syntax {2}"),
        ("raise ValueError('several\\nlines')", "can't be imported: ValueError: several lines {1}"),
        ("raise SystemExit(3)", "can't be imported: SystemExit: 3 {1}"),
        # The plugin's own line is named, not the one of the standard library.
        (
            "import json\njson.loads('{')",
            "can't be imported: JSONDecodeError: Expecting property name enclosed in double quotes:"
            " line 1 column 2 (char 1) {2}",
        ),
        ("class Bda:\n    pass", 'can\'t be imported: bad has no "Bad" (did you mean "Bda"?)'),
        ("def Bad():\n    pass", "is a function, expected a class, such as bad:Shout"),
    ],
)
def test_an_import_that_fails_is_one_line_with_its_place(module: str, message: str, site: Path, tmp_path: Path) -> None:
    install(site, "bad", {"bad": "bad:Bad"}, module)
    for line in (1, 2):
        message = message.replace(f"{{{line}}}", where(site, line))
    assert errors(tmp_path, 'handler = "bad"') == [
        f'listeners.www.handler: the plugin "bad" (bad:Bad, of bad 1.0) {message}'
    ]


def test_an_entry_point_that_names_a_module_is_an_error(site: Path, tmp_path: Path) -> None:
    install(site, "bad", {"bad": "bad"}, "")
    assert errors(tmp_path, 'handler = "bad"') == [
        'listeners.www.handler: the plugin "bad" (bad, of bad 1.0) is a module, expected a class, such as bad:Shout'
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def on_readable(self, conn): ...",
            "has a method on_readable that is not marked as a hook, expected @hookimpl above it",
        ),
        (
            "@hookimpl\n    def on_readable(self, conn): ...\n    def on_drain(self, conn): ...",
            "has a method on_drain that is not marked as a hook, expected @hookimpl above it",
        ),
        (
            "@hookimpl\n    def on_connection_init(self): ...\n    @hookimpl\n    def on_readble(self, conn): ...",
            'has a hook on_readble (did you mean "on_readable"?), expected on_connection_init, on_readable,'
            " on_writable, on_connection_close, on_child_exit, on_worker_start, on_worker_stop or on_drain",
        ),
        (
            "@hookimpl\n    def on_readable(self, connection): ...",
            'takes "connection" in its on_readable, expected no arguments but conn',
        ),
        (
            "@hookimpl\n    def on_readable(self, conn): ...\n"
            "    @hookimpl\n    def on_connection_close(self, why): ...",
            'takes "why" in its on_connection_close, expected no arguments but conn and reason',
        ),
        (
            "@hookimpl\n    async def on_readable(self, conn): ...",
            'has an "async def on_readable", expected a plain "def": hooks are called, not awaited',
        ),
        (
            "@hookimpl\n    def on_readable(self, conn): yield",
            'has a "yield" in its on_readable, expected none, or @hookimpl(wrapper=True)',
        ),
        (
            "@hookimpl(wrapper=True)\n    def on_readable(self, conn): ...",
            "has a hook that can't be called: ",
        ),
        (
            "@hookimpl\n    def on_worker_start(self, worker): ...",
            "can't be a handler: it has neither of the hooks on_connection_init and on_readable, expected one of them",
        ),
        (
            "half_close = 3\n    @hookimpl\n    def on_readable(self): ...",
            'has half_close = 3, expected "finish", "abort" or "timely"',
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    Options = dict",
            "has <class 'dict'> as its Options, expected a subclass of msgspec.Struct",
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    class Options(msgspec.Struct):\n        x: 'Nothing'",
            "has Options that can't be understood: NameError: name 'Nothing' is not defined",
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    class Options(msgspec.Struct):\n        backlog: int = 1",
            'has "backlog" among its Options, the key of every listener, expected other names',
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    class Options(msgspec.Struct, rename={'a': 'tls'}):\n"
            "        a: int = 1\n        allow: list[str] = []\n        allowed: int = 3",
            'has "tls" and "allow" among its Options, the keys of every listener, expected other names',
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    def __init__(self):\n        raise OSError('no disk')",
            "failed in __init__: OSError: no disk ({site}/bad.py, line 8)",
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    def __init__(self, options): ...",
            "failed in __init__: TypeError: Bad.__init__() missing 1 required positional argument: 'options'",
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    def __init__(self):\n        raise SystemExit",
            "failed in __init__: SystemExit ({site}/bad.py, line 8)",
        ),
    ],
)
def test_a_class_that_can_not_be_used(body: str, message: str, site: Path, tmp_path: Path) -> None:
    install(site, "bad", {"bad": "bad:Bad"})
    (site / "bad.py").write_text(f"import msgspec\nfrom poolsrv import hookimpl\n\nclass Bad:\n    {body}\n")
    (found,) = errors(tmp_path, 'handler = "bad"')
    start = f'listeners.www.handler: the plugin "bad" (bad:Bad, of bad 1.0) {message.format(site=site)}'
    assert found == start or (message.endswith(": ") and found.startswith(start))


def test_a_further_plugin_needs_none_of_the_first_two_hooks(site: Path, tmp_path: Path) -> None:
    install(
        site,
        "both",
        {"plain": "both:Plain", "further": "both:Further"},
        PLAIN
        + """
    class Further:
        @hookimpl(tryfirst=True, specname="on_connection_close")
        def told(self, reason, more=1):
            return None

        @hookimpl(optionalhook=True)
        def on_something_of_later(self, anything):
            return None

        @staticmethod
        @hookimpl
        def on_drain(conn):
            return None
    """,
    )
    assert len(serve(tmp_path, 'handler = "plain"\nplugins = ["further"]').listeners[0].hooks.plugins) == 2


THREAD = "import threading\nstop = threading.Event()\nstart = threading.Thread(target=stop.wait, name='mine').start\n"


def test_an_import_that_starts_a_thread_is_an_error(site: Path, tmp_path: Path) -> None:
    install(site, "bad", {"bad": "bad:Bad"}, f"{THREAD}start()\nclass Bad: ...\n")
    before = threading.active_count()
    try:
        assert errors(tmp_path, 'handler = "bad"') == [
            'listeners.www.handler: the plugin "bad" (bad:Bad, of bad 1.0) starts a thread in its import ("mine"),'
            " expected none before on_worker_start"
        ]
    finally:
        sys.modules["bad"].stop.set()
        while threading.active_count() > before:
            threading.enumerate()[-1].join()


NATIVE_THREAD = """\
import _thread, ctypes
stop, named = _thread.allocate_lock(), _thread.allocate_lock()
stop.acquire(), named.acquire()
def run():
    ctypes.CDLL(None).prctl(15, b"m\\xfcller")  # PR_SET_NAME, as a library in C may, in any encoding
    named.release()
    stop.acquire()
_thread.start_new_thread(run, ())
named.acquire()
class Bad: ...
"""


def test_a_thread_whose_name_is_not_utf_8_is_told_too(site: Path, tmp_path: Path) -> None:
    install(site, "bad", {"bad": "bad:Bad"}, NATIVE_THREAD)
    before = set(os.listdir("/proc/self/task"))
    try:
        assert errors(tmp_path, 'handler = "bad"') == [
            'listeners.www.handler: the plugin "bad" (bad:Bad, of bad 1.0) starts a thread in its import'
            ' ("m\ufffdller"), expected none before on_worker_start'
        ]
    finally:
        sys.modules["bad"].stop.release()
        wait_until(lambda: set(os.listdir("/proc/self/task")) <= before, "the end of the thread")


def test_an_init_that_starts_a_thread_is_an_error(site: Path, tmp_path: Path) -> None:
    install(site, "bad", {"bad": "bad:Bad"})
    (site / "bad.py").write_text(
        f"{THREAD}from poolsrv import hookimpl\nclass Bad:\n    def __init__(self): start()\n"
        "    @hookimpl\n    def on_readable(self): ...\n"
    )
    before = threading.active_count()
    try:
        assert errors(tmp_path, 'handler = "bad"') == [
            'listeners.www.handler: the plugin "bad" (bad:Bad, of bad 1.0) starts a thread in its __init__ ("mine"),'
            " expected none before on_worker_start"
        ]
    finally:
        sys.modules["bad"].stop.set()
        while threading.active_count() > before:
            threading.enumerate()[-1].join()


def test_a_thread_that_has_ended_is_none(site: Path, tmp_path: Path) -> None:
    install(site, "fine", {"fine": "fine:Plain"})
    ended = "import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()\n"
    (site / "fine.py").write_text(ended + PLAIN.replace("\n    ", "\n"))
    serve(tmp_path, 'handler = "fine"')


def test_an_error_of_a_plugin_comes_once_where_it_is_first_named(site: Path, tmp_path: Path) -> None:
    install(site, "bad", {"bad": "bad:Bad"}, "raise ValueError('no')")
    assert errors(
        tmp_path,
        '[listeners.a]\nbind = ":0"\nhandler = "echo"\nplugins = ["bad"]\n[listeners.b]\nbind = ":0"\nhandler = "bad"',
    ) == [
        f'listeners.a.plugins[0]: the plugin "bad" (bad:Bad, of bad 1.0) can\'t be imported:'
        f" ValueError: no {where(site, 1)}"
    ]


# -- options


OPTIONS = """
    from __future__ import annotations
    from pathlib import Path
    from typing import Annotated, Any, Literal
    import msgspec
    from poolsrv import ConfigError, hookimpl

    class Limits(msgspec.Struct):
        cpu: float = 1.0
        files: Annotated[int, msgspec.Meta(ge=3, le=100)] = 10

    class Opt:
        class Options(msgspec.Struct):
            root: Path
            protocol: Literal["http", "line"] = "http"
            timeout: Annotated[float, msgspec.Meta(ge=0)] = 30.0
            arguments: bool = False
            env: dict[str, str] = {}
            limits: Limits = msgspec.field(default_factory=Limits)
            places: list[Limits] = []
            roots: dict[str, list[Path]] = {}
            pair: tuple[int, str] | None = None
            name: Annotated[str, msgspec.Meta(min_length=2, pattern="^[a-z]+$")] = "ab"
            few: Annotated[list[int], msgspec.Meta(max_length=2)] = []
            either: int | list[str] = 3
            anything: Any = None

            def __post_init__(self):
                if self.timeout == 13:
                    raise ValueError("13 brings bad luck, expected another number")

        def __init__(self, options):
            if options.env.get("deny") == "root":
                raise ConfigError("root", "no such directory,\\nexpected one")
            if options.env.get("deny") == "cpu":
                raise ConfigError("limits.cpu", "too much")
            if options.env.get("deny") == "all":
                raise ConfigError("", "these don't go together")

        @hookimpl
        def on_readable(self, conn):
            return None
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("root = 3", "root: got 3 (a number), expected a path"),
        ('root = ""', 'root: got "", expected a path'),
        ('root = "a\\u0000b"', 'root: got "a\\u0000b", expected a path'),
        ('protocol = "lin"', 'protocol: got "lin" (did you mean "line"?), expected "http" or "line"'),
        (
            'protocl = "line"',
            'protocl: unknown key (did you mean "protocol"?), expected root, protocol, timeout, arguments, env, limits'
            " or one of 7 others",
        ),
        (
            'timeout = "5m"',
            'timeout: got "5m" (a string), expected a number from 0 (times are in seconds: write 300.0)',
        ),
        ("timeout = nan", "timeout: got nan, expected a number from 0"),
        ("timeout = 13", "13 brings bad luck, expected another number"),
        ("arguments = 1", "arguments: got 1 (a number), expected true or false"),
        ('arguments = "true"', 'arguments: got "true" (a string), expected true or false'),
        ("env = { A = 1 }", "env.A: got 1 (a number), expected a string"),
        ('env = { "a b" = 1 }', 'env."a b": got 1 (a number), expected a string'),
        ("env = [1]", "env: got a list, expected a table of strings"),
        ("limits = { cpu = true }", "limits.cpu: got true, expected a number"),
        ("limits = { files = 2 }", "limits.files: got 2, expected a whole number from 3 to 100"),
        ("limits = { fiels = 3 }", 'limits.fiels: unknown key (did you mean "files"?), expected cpu or files'),
        ("limits = 3", "limits: got 3 (a number), expected a table"),
        ('places = [{}, { cpu = "x" }]', 'places[1].cpu: got "x" (a string), expected a number'),
        ('roots = { a = ["x", 3] }', "roots.a[1]: got 3 (a number), expected a path"),
        ("pair = [1, 2]", "pair[1]: got 2 (a number), expected a string"),
        ("pair = [1]", "pair: got a list, expected a list of 2: a whole number and a string"),
        (
            'name = "A"',
            'name: got "A", expected a string that matches ^[a-z]+$ with at least 2 characters',
        ),
        ("few = [1, 2, 3]", "few: got a list, expected a list of whole numbers with at most 2 members"),
        ("either = [3]", "either[0]: got 3 (a number), expected a string"),
        ("either = true", "either: got true, expected a whole number or a list of strings"),
        ("idle_timeout = 3", "idle_timeout: `idle_timeout` belongs in [listeners.www], above [listeners.www.opt]"),
        ('env = { deny = "root" }', "root: no such directory, expected one"),
        ('env = { deny = "cpu" }', "limits.cpu: too much"),
        ('env = { deny = "all" }', "these don't go together"),
    ],
)
def test_a_wrong_option_has_its_full_place(line: str, message: str, site: Path, tmp_path: Path) -> None:
    install(site, "opt", {"opt": "opt:Opt"}, OPTIONS)
    root = "" if line.startswith("root =") else 'root = "."'
    found = errors(tmp_path, f'[listeners.www]\nbind = ":0"\nhandler = "opt"\n[listeners.www.opt]\n{root}\n{line}')
    dot = "." if ": " in message and not message[0].isdigit() else ": "
    assert found == [f"listeners.www.opt{dot}{message}"]


def test_a_required_option_is_missed_with_and_without_the_table(site: Path, tmp_path: Path) -> None:
    install(site, "opt", {"opt": "opt:Opt"}, OPTIONS)
    expected = ["listeners.www.opt.root: missing, expected a path"]
    assert errors(tmp_path, 'handler = "opt"') == expected
    assert errors(tmp_path, '[listeners.www]\nbind = ":0"\nhandler = "opt"\n[listeners.www.opt]') == expected


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('root = "x"', "root: `root` belongs in [listeners.www.opt]"),
        ("[listeners.www.env]\nA = 'b'", "env: `env` belongs in [listeners.www.opt]"),
        ("dispatch = 3", "dispatch: `dispatch` belongs in [pool]"),
        ("opt = 3", "opt: got 3 (a number), expected a table: [listeners.www.opt]"),
        (
            "idle_timeot = 3",
            f'idle_timeot: unknown key (did you mean "idle_timeout"?), expected {shortlist(LISTENER_KEYS)}',
        ),
        (
            "protocl = 3",
            'protocl: unknown key (did you mean "protocol" in [listeners.www.opt]?), expected '
            + shortlist(LISTENER_KEYS),
        ),
        (
            "[listeners.www.echo]\nx = 3",
            'echo: the plugin "echo" is not on this listener, expected it as `handler` or among `plugins`'
            " of [listeners.www]",
        ),
        (
            "[listeners.www.otp]\nx = 3",
            'otp: unknown table (did you mean "opt"?), expected [listeners.www.plain] or [listeners.www.opt]',
        ),
        (
            "[listeners.www.plain]\nx = 3",
            'plain: the plugin "plain" takes no options, expected no table [listeners.www.plain]',
        ),
        (
            "[listeners.www.plain]",
            'plain: the plugin "plain" takes no options, expected no table [listeners.www.plain]',
        ),
    ],
)
def test_what_is_in_the_wrong_place_is_told_the_right_one(lines: str, message: str, site: Path, tmp_path: Path) -> None:
    install(site, "opt", {"opt": "opt:Opt"}, OPTIONS)
    install(site, "plain-one", {"plain": "plain_one:Plain"}, PLAIN)
    found = errors(
        tmp_path,
        f'[listeners.www]\nbind = ":0"\nhandler = "opt"\nplugins = ["plain"]\n{lines}\n'
        + ("" if lines.startswith("opt") else '[listeners.www.opt]\nroot = "."\n'),
    )
    assert found[0] == f"listeners.www.{message}"
    assert found[1:] == (["listeners.www.opt.root: missing, expected a path"] if lines.startswith("opt") else [])


def test_errors_of_file_imports_options_and_init_come_together(site: Path, tmp_path: Path) -> None:
    install(site, "opt", {"opt": "opt:Opt"}, OPTIONS)
    install(site, "bad", {"bad": "bad:Bad"}, "1 / 0")
    found = errors(
        tmp_path,
        """
        [pool]
        workers = 0
        [listeners.a]
        bind = 7007
        handler = "bad"
        [listeners.b]
        bind = ":0"
        handler = "opt"
        [listeners.b.opt]
        root = "."
        env = { deny = "root" }
        [listeners.c]
        bind = ":0"
        handler = "opt"
        [listeners.c.opt]
        timeout = "x"
        """,
    )
    assert [message.split(": ")[0] for message in found] == [
        "pool.workers",
        "listeners.a.bind",
        "listeners.a.handler",
        "listeners.b.opt.root",
        "listeners.c.opt.root",
        "listeners.c.opt.timeout",
    ]
