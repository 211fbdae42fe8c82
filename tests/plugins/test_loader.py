"""What the loader makes of a right config."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.distributions import install
from tests.helpers.plugin_configs import PLAIN, errors, serve


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
def test_half_close_is_the_handlers_unless_the_config_sets_it(
    lines: str, expected: str, site: Path, tmp_path: Path
) -> None:
    install(site, "hc", {"silent": "hc:Silent", "aborts": "hc:Aborts", "decides": "hc:Decides"}, HALF_CLOSE)
    assert serve(tmp_path, lines).listeners[0].half_close == expected


def test_an_unknown_half_close_is_an_error(site: Path, tmp_path: Path) -> None:
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


NO_EFFECT = (
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
        ('handler = "plain"\ntrusted_proxies = ["::1"]', NO_EFFECT),
        ('handler = "plain"\ntrusted_proxies = []', NO_EFFECT),
    ],
)
def test_believing_proxies_needs_trusted_proxies(lines: str, message: str, site: Path, tmp_path: Path) -> None:
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
def test_trusted_proxies_that_are_right(lines: str, site: Path, tmp_path: Path) -> None:
    install(site, "bp", {"plain": "bp:Plain", "believes": "bp:Believes"}, BELIEVES)
    assert serve(tmp_path, f"[listeners.www]\n{lines}\n").listeners
