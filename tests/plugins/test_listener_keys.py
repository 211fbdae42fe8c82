"""What a plugin's class says about its listener: defaults, requires_workers, exclusive."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poolsrv.cli import effective_config, plugin_list
from poolsrv.config import reader
from poolsrv.config.model import APART
from poolsrv.plugins.loader import load_plugins
from poolsrv.worker.spec import ListenerSpec
from tests.helpers.distributions import install
from tests.helpers.plugin_configs import errors, serve, write

ECHO = '[listeners.echo]\nbind = ":0"\nhandler = "echo"\n'


def plugin(site: Path, name: str, attributes: str) -> None:
    lines = "".join(f"    {line}\n" for line in attributes.splitlines())
    text = f"class P:\n{lines}    @hookimpl\n    def on_readable(self, conn): pass\n"
    install(site, name, {name: f"{name}:P"}, f"from poolsrv import hookimpl\n{text}")


def loaded(tmp_path: Path, lines: str) -> ListenerSpec:
    return serve(tmp_path, lines).listeners[0]


def test_defaults_of_the_class_count_unless_the_config_says_something(site: Path, tmp_path: Path) -> None:
    plugin(site, "p", 'defaults = {"idle_timeout": 5, "half_close": "abort", "keepalive": 7, "workers": 1}')
    spec = loaded(tmp_path, 'handler = "p"\nkeepalive = 9')
    config = spec.config
    assert (config.idle_timeout, spec.half_close, config.keepalive, config.workers) == (5.0, "abort", 9, 1)
    assert loaded(tmp_path, 'handler = "p"\nhalf_close = "timely"').half_close == "timely"
    further = loaded(tmp_path, 'handler = "echo"\nplugins = ["p"]')
    assert (further.config.idle_timeout, further.half_close) == (60.0, "finish")  # they are the handler's
    unix = loaded(tmp_path, '[listeners.www]\nbind = "unix:a.sock"\nhandler = "p"')
    assert unix.config.keepalive == 300


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            'defaults = {"idle_timout": 5}',
            r'has \'idle_timout\' among its defaults \(did you mean "idle_timeout"\?\), expected "workers", .*',
        ),
        (
            'defaults = {"bind": ":80"}',
            r'has "bind" among its defaults, which only the config may set, expected .*',
        ),
        ('defaults = {"exclusive": True}', r'has "exclusive" among its defaults, which only the config may set, .*'),
        (
            'defaults = {"idle_timeout": "30s"}',
            r'has a wrong idle_timeout among its defaults: got "30s" \(a string\), expected a number of seconds, .*',
        ),
        ('defaults = {"half_close": "never"}', r'has a wrong half_close among its defaults: got "never", expected .*'),
        ('defaults = {"workers": None}', r"has workers = None among its defaults, expected a value"),
        ('defaults = ["idle_timeout"]', r"has defaults = \['idle_timeout'\], expected a dict of keys of its listener"),
        ("requires_workers = 2", r"has requires_workers = 2, expected 1"),
        ("requires_workers = True", r"has requires_workers = True, expected 1"),
        ("exclusive = 1", r"has exclusive = 1, expected True or False"),
        ("apart = 1", r"has apart = 1, expected True or False"),
    ],
)
def test_what_a_class_says_wrongly_is_an_error_that_names_it(
    site: Path, tmp_path: Path, attributes: str, message: str
) -> None:
    plugin(site, "p", attributes)
    (line,) = errors(tmp_path, 'handler = "p"')
    assert re.fullmatch(rf'listeners.www.handler: the plugin "p" \(p:P, of p 1.0\) {message}', line), line
    entry = plugin_list.entry("p")
    assert entry.error is not None
    assert re.fullmatch(message, entry.error)


def test_one_worker_that_is_required(site: Path, tmp_path: Path) -> None:
    plugin(site, "p", "requires_workers = 1")
    why = '`workers = 1` in [listeners.www]: the plugin "p" keeps in one worker what all clients share'
    assert errors(tmp_path, 'handler = "p"') == [f"listeners.www.workers: missing, expected {why}"]
    assert errors(tmp_path, 'handler = "p"\nworkers = 2') == [f"listeners.www.workers: got 2, expected {why}"]
    assert len(errors(tmp_path, 'handler = "p"\nworkers = "x"')) == 1
    for lines in ("workers = 1", "exclusive = true"):
        assert loaded(tmp_path, f'handler = "p"\n{lines}').config.workers == 1
    one = '[pool]\nworkers = 1\n[listeners.www]\nbind = ":0"\nhandler = "p"\n'
    assert loaded(tmp_path, one).config.workers == 1  # also when workers are added later
    assert errors(tmp_path, 'handler = "echo"\nplugins = ["p"]') == [f"listeners.www.workers: missing, expected {why}"]


def test_an_exclusive_listener_has_the_first_worker_for_itself(site: Path, tmp_path: Path) -> None:
    plugin(site, "p", "exclusive = True")
    for workers, others in ((1, [0]), (3, [1, 2])):
        text = f'[pool]\nworkers = {workers}\n[listeners.www]\nbind = ":0"\nhandler = "p"\n{ECHO}'
        exclusive, echo = (listener.config for listener in serve(tmp_path, text).listeners)
        assert (exclusive.exclusive, exclusive.workers) == (True, 1)
        assert [n for n in range(workers) if exclusive.is_for(n)] == [0]
        assert [n for n in range(workers) if echo.is_for(n)] == others
    text = text.replace('handler = "echo"', 'handler = "echo"\nworkers = 3').replace('"p"', '"p"\nexclusive = false')
    exclusive, echo = (listener.config for listener in serve(tmp_path, text).listeners)
    assert (exclusive.exclusive, exclusive.workers, echo.first_worker, echo.workers) == (False, None, 0, 3)
    got = errors(tmp_path, 'handler = "p"\nworkers = 2')
    assert got == ['listeners.www.workers: got 2, expected 1: the plugin "p" is exclusive']
    got = errors(tmp_path, 'handler = "echo"\nworkers = 2\nexclusive = true')
    assert got == ["listeners.www.workers: got 2, expected 1: the listener is `exclusive`"]
    got = errors(tmp_path, 'handler = "p"\nreuse_port = true')
    several = "listeners.www.reuse_port: is for several servers on one address, and"
    assert got == [f'{several} the plugin "p" is exclusive']
    got = errors(tmp_path, 'handler = "echo"\nreuse_port = true\nexclusive = true')
    assert got == [f"{several} an `exclusive` listener has one instance in the world"]
    assert loaded(tmp_path, 'handler = "echo"\nplugins = ["p"]').config.exclusive  # one of them is enough


def test_the_commands_show_them(site: Path, tmp_path: Path) -> None:
    plugin(site, "p", 'exclusive = True\nhalf_close = "abort"\ndefaults = {"idle_timeout": 5}')
    plugin(site, "chat", "requires_workers = 1")
    text = plugin_list.explanation(plugin_list.entry("p"))
    assert 'defaults of its listener: idle_timeout = 5, half_close = "abort", exclusive = true' in text
    assert "its listener must have: workers = 1" in plugin_list.explanation(plugin_list.entry("chat"))
    draft = reader.read(write(tmp_path, 'handler = "p"'))
    lines = effective_config.as_toml(draft, load_plugins(draft)).splitlines()
    for line in (
        "idle_timeout = 5  # default of p",
        "exclusive = true  # default of p",
        "workers = 1  # since it is exclusive",
    ):
        assert line in lines, lines


def test_a_handler_with_a_worker_apart(site: Path, tmp_path: Path) -> None:
    plugin(site, "p", "apart = True\nrequires_workers = 1")
    plugin(site, "q", "exclusive = True")
    for pool in ("", '[pool]\nworkers = 3\n[listeners.x]\nbind = ":0"\nhandler = "q"\n'):
        text = f'{pool}[listeners.www]\nbind = ":0"\nhandler = "p"\n'
        config = serve(tmp_path, text).listeners[-1].config
        assert config.apart
        assert [n for n in range(-1, 4) if config.is_for(n)] == [APART]
    assert not loaded(tmp_path, 'handler = "echo"\nplugins = ["p"]\nworkers = 1').config.apart  # the handler says it
    own = 'has no meaning here: the plugin "p" has a worker of its own'
    assert errors(tmp_path, 'handler = "p"\nworkers = 1') == [f"listeners.www.workers: {own}"]
    assert errors(tmp_path, 'handler = "p"\nexclusive = true') == [f"listeners.www.exclusive: {own}"]
    assert loaded(tmp_path, 'handler = "p"\nexclusive = false').config.apart
    got = errors(tmp_path, 'handler = "p"\nplugins = ["q"]')
    assert got == ['listeners.www.plugins: "q" is exclusive, and "p" has a worker of its own']
    assert plugin_list.entry("p").apart


# --- kernel dispatch

KERNEL = '[pool]\nworkers = 2\ndispatch = "kernel"\n[listeners.www]\nbind = ":0"\n'
WHY = (
    'or another `dispatch`: with `dispatch = "kernel"` workers accept by themselves, and nothing counts over all of'
    " them"
)


@pytest.mark.parametrize("key", ["max_connections", "connection_rate", "max_per_source", "rate_per_source"])
def test_with_kernel_dispatch_a_limit_over_all_workers_is_an_error(tmp_path: Path, key: str) -> None:
    assert errors(tmp_path, f'{KERNEL}handler = "echo"\n{key} = 7') == [
        f"listeners.www.{key}: got 7, expected no such limit, {WHY}"
    ]
    serve(tmp_path, f'{KERNEL}handler = "echo"\n{key} = 0\ndeny = ["192.0.2.0/24"]')
    serve(tmp_path, f'{KERNEL}handler = "echo"\n{key} = 7\nreuse_port = true')


def test_with_kernel_dispatch_a_default_of_the_handler_has_to_be_set_to_0(site: Path, tmp_path: Path) -> None:
    plugin(site, "p", 'defaults = {"max_connections": 100}')
    assert errors(tmp_path, f'{KERNEL}handler = "p"') == [
        f"listeners.www.max_connections: got 100 (default of p), expected `max_connections = 0`, {WHY}"
    ]
    serve(tmp_path, f'{KERNEL}handler = "p"\nmax_connections = 0')
    serve(tmp_path, KERNEL.replace(":0", "unix:s") + 'handler = "p"')
    plugin(site, "q", 'defaults = {"max_connections": 100}\napart = True')
    serve(tmp_path, f'{KERNEL}handler = "q"')
