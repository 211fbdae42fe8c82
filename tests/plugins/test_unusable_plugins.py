"""Plugins that can't be used: not found, not importable, with wrong hooks, or with threads."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from poolsrv.plugins import discovery
from tests.helpers.distributions import install
from tests.helpers.plugin_configs import PLAIN, errors, serve, where
from tests.helpers.server import wait_until


def test_a_misspelt_plugin_is_told_the_nearest_name(site: Path, tmp_path: Path) -> None:
    (message,) = errors(tmp_path, 'handler = "ecoh"')
    assert message.startswith('listeners.www.handler: no plugin "ecoh" is installed (did you mean "echo"?), expected "')


def test_unusable_plugins_are_not_among_those_expected(site: Path, tmp_path: Path) -> None:
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


def test_a_distribution_with_undecodable_metadata_hides_no_other(site: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("import nothere_at_all", "can't be imported: ModuleNotFoundError: No module named 'nothere_at_all' {1}"),
        ("x = 1\n1 / 0", "can't be imported: ZeroDivisionError: division by zero {2}"),
        ("\nclass Bad(:\n    pass", "can't be imported: SyntaxError: invalid syntax {2}"),
        ("raise ValueError('several\\nlines')", "can't be imported: ValueError: several lines {1}"),
        ("raise SystemExit(3)", "can't be imported: SystemExit: 3 {1}"),
        ("raise KeyboardInterrupt", "can't be imported: KeyboardInterrupt {1}"),
        ("def __getattr__(name):\n    raise SystemExit(3)", "can't be imported: SystemExit: 3 {2}"),
        (
            "class Mute(Exception):\n    def __str__(self): raise SystemExit\nraise Mute",
            "can't be imported: Mute ({site}/bad.py, line 3)",
        ),
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
        message = message.replace(f"{{{line}}}", where(site, line)).replace("{site}", str(site))
    assert errors(tmp_path, 'handler = "bad"') == [
        f'listeners.www.handler: the plugin "bad" (bad:Bad, of bad 1.0) {message}'
    ]


def test_a_plugin_that_finds_no_descriptors_is_an_error_although_none_are_left_to_say_where(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "bad", {"bad": "bad:Bad"}, "raise OSError(24, 'Too many open files')")
    monkeypatch.setitem(sys.modules, "sysconfig", NoDescriptors("sysconfig"))
    (message,) = errors(tmp_path, 'handler = "bad"')
    assert message.endswith(" can't be imported: OSError: [Errno 24] Too many open files")


class NoDescriptors(ModuleType):
    """A module whose file can't be opened."""

    def get_path(self, name: str) -> str:
        raise OSError(24, "Too many open files")


def test_an_entry_point_that_refers_to_a_module_is_an_error(site: Path, tmp_path: Path) -> None:
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
        (
            "@hookimpl\n    def on_readable(self): ...\n    def __init__(self):\n        raise KeyboardInterrupt",
            "failed in __init__: KeyboardInterrupt ({site}/bad.py, line 8)",
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    class Ends:\n"
            "        def __get__(self, *of): raise SystemExit(3)\n    other = Ends()",
            "has an attribute that can't be read: SystemExit: 3 ({site}/bad.py, line 8)",
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    @property\n    def half_close(self): raise SystemExit(3)",
            "has an attribute that can't be read: SystemExit: 3 ({site}/bad.py, line 8)",
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    @property\n    def believes_proxies(self): return 1 / 0",
            "has an attribute that can't be read: ZeroDivisionError: division by zero ({site}/bad.py, line 8)",
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    class Options(msgspec.Struct):\n        x: 'exit(3)'",
            "has Options that can't be understood: SystemExit: 3",
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    class Options(msgspec.Struct):\n"
            "        def __post_init__(self): raise KeyboardInterrupt",
            "failed in its Options: KeyboardInterrupt ({site}/bad.py, line 8)",
        ),
        (
            "@hookimpl\n    def on_readable(self): ...\n    class Options(msgspec.Struct):\n"
            "        x: int = msgspec.field(default_factory=lambda: 1 // 0)",
            "failed in its Options: ZeroDivisionError: integer division or modulo by zero ({site}/bad.py, line 8)",
        ),
    ],
)
def test_a_class_that_can_not_be_used(body: str, message: str, site: Path, tmp_path: Path) -> None:
    install(site, "bad", {"bad": "bad:Bad"})
    (site / "bad.py").write_text(f"import msgspec\nfrom poolsrv import hookimpl\n\nclass Bad:\n    {body}\n")
    (found,) = errors(tmp_path, 'handler = "bad"')
    start = f'listeners.www.handler: the plugin "bad" (bad:Bad, of bad 1.0) {message.format(site=site)}'
    assert found == start or (message.endswith(": ") and found.startswith(start))


def test_a_plugin_beside_the_handler_needs_neither_of_the_first_two_hooks(site: Path, tmp_path: Path) -> None:
    install(
        site,
        "both",
        {"plain": "both:Plain", "further": "both:Further"},
        PLAIN
        + """
    class Further:
        @hookimpl(tryfirst=True, specname="on_connection_close")
        def closed(self, reason, more=1):
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
    ctypes.CDLL(None).prctl(15, b"m\\xfcller")  # PR_SET_NAME; a library in C may use any encoding
    named.release()
    stop.acquire()
_thread.start_new_thread(run, ())
named.acquire()
class Bad: ...
"""


def test_a_thread_with_an_undecodable_name_is_reported_too(site: Path, tmp_path: Path) -> None:
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


def test_a_thread_that_has_ended_is_no_error(site: Path, tmp_path: Path) -> None:
    install(site, "fine", {"fine": "fine:Plain"})
    ended = "import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()\n"
    (site / "fine.py").write_text(ended + PLAIN.replace("\n    ", "\n"))
    serve(tmp_path, 'handler = "fine"')


def test_an_error_of_a_plugin_is_reported_once_where_the_file_first_names_it(site: Path, tmp_path: Path) -> None:
    install(site, "bad", {"bad": "bad:Bad"}, "raise ValueError('no')")
    assert errors(
        tmp_path,
        '[listeners.a]\nbind = ":0"\nhandler = "echo"\nplugins = ["bad"]\n[listeners.b]\nbind = ":0"\nhandler = "bad"',
    ) == [
        f'listeners.a.plugins[0]: the plugin "bad" (bad:Bad, of bad 1.0) can\'t be imported:'
        f" ValueError: no {where(site, 1)}"
    ]
