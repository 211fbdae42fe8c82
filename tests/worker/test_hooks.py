from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from poolsrv.worker.hooks import HOOK_NAMES, NOTIFICATIONS, Caller, HookError, Hooks, NamedPlugin
from poolsrv.worker.hookspecs import hookimpl

CONN = object()


def plugin(name: str, **methods: Callable[..., object]) -> NamedPlugin:
    """An instance of a class of its own that has these hooks."""
    return NamedPlugin(name, type(name, (), {hook: hookimpl(method) for hook, method in methods.items()})())


def call(caller: Caller | None, *arguments: object) -> Any:
    assert caller is not None
    return caller(*arguments)


def recorder(calls: list[str], name: str, result: object = None) -> Callable[[Any, Any], object]:
    def record(self: Any, conn: Any) -> object:
        calls.append(name)
        return result

    return record


# The same class, called directly, and through pluggy: since another implements the hook too, since there is a
# wrapper, or since it doesn't take all arguments.
class Sample:
    """Has hooks of one argument and of two, a chain and a notification."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    @hookimpl
    def on_connection_init(self, conn: object) -> object:
        self.seen.append(("init", conn))
        return "taken over"

    @hookimpl
    def on_readable(self, conn: object) -> None:
        self.seen.append(("readable", conn))
        raise LookupError(conn)

    @hookimpl
    def on_connection_close(self, conn: object, reason: str) -> None:
        self.seen.append(("close", conn, reason))

    @hookimpl
    def on_child_exit(self, child: object, conn: object) -> None:
        self.seen.append(("exit", child, conn))
        raise LookupError(child)


class Silent:
    """Implements every hook that Sample has, and is called after it or does nothing."""

    @hookimpl(trylast=True)
    def on_connection_init(self) -> None:
        raise AssertionError("the chain has ended")

    @hookimpl(trylast=True)
    def on_readable(self) -> None:
        raise AssertionError("the chain has ended")

    @hookimpl
    def on_connection_close(self) -> None: ...

    @hookimpl
    def on_child_exit(self) -> None: ...


class Wrapping:
    """Wraps every hook that Sample has, and changes nothing."""

    @hookimpl(wrapper=True)
    def on_connection_init(self) -> Generator[None, object, object]:
        return (yield)

    @hookimpl(wrapper=True)
    def on_readable(self) -> Generator[None, object, object]:
        return (yield)

    @hookimpl(wrapper=True)
    def on_connection_close(self) -> Generator[None, object, object]:
        return (yield)

    @hookimpl(wrapper=True)
    def on_child_exit(self) -> Generator[None, object, object]:
        return (yield)


@pytest.mark.parametrize("other", [None, Silent, Wrapping])
def test_both_ways_of_calling_behave_alike(other: type[object] | None) -> None:
    sample = Sample()
    plugins = [NamedPlugin("other", other())] if other is not None else []
    hooks = Hooks([*plugins, NamedPlugin("sample", sample)])
    faults: list[tuple[str, str, dict[str, Any], str]] = []
    hooks.fault_handler = lambda hook, name, arguments, error: faults.append((hook, name, arguments, repr(error)))

    assert (hooks.on_connection_init == sample.on_connection_init) is (other is None)
    assert call(hooks.on_connection_init, CONN) == "taken over"
    with pytest.raises(LookupError) as error:
        call(hooks.on_readable, 7)
    assert hooks.culprit(error.value) == "sample"
    call(hooks.on_connection_close, CONN, "eof")
    call(hooks.on_child_exit, 8, CONN)

    assert sample.seen == [("init", CONN), ("readable", 7), ("close", CONN, "eof"), ("exit", 8, CONN)]
    assert faults == [("on_child_exit", "sample", {"child": 8, "conn": CONN}, "LookupError(8)")]
    assert hooks.on_drain is None
    assert hooks.on_worker_start is None


def test_an_implementation_takes_only_the_arguments_that_it_names() -> None:
    seen: list[object] = []

    class Few:
        @hookimpl
        def on_readable(self) -> None:
            seen.append("readable")

        @hookimpl
        def on_connection_close(self, reason: str) -> None:
            seen.append(reason)

        @hookimpl
        def on_child_exit(self, conn: object, child: object) -> None:  # in another order than the specification
            seen.append((conn, child))

    hooks = Hooks([NamedPlugin("few", Few())])
    call(hooks.on_readable, CONN)
    call(hooks.on_connection_close, CONN, "eof")
    call(hooks.on_child_exit, "child", "conn")
    assert seen == ["readable", "eof", ("conn", "child")]


def test_plugins_are_called_in_the_order_of_the_config_then_the_handler() -> None:
    calls: list[str] = []
    hooks = Hooks([plugin(name, on_readable=recorder(calls, name)) for name in ("first", "second", "handler")])
    assert call(hooks.on_readable, CONN) is None
    assert calls == ["first", "second", "handler"]


def test_tryfirst_trylast_and_wrappers_work_as_in_pluggy() -> None:
    calls: list[str] = []

    class Wrapper:
        @hookimpl(wrapper=True)
        def on_readable(self, conn: object) -> Generator[None, object, object]:
            calls.append("before")
            result = yield
            calls.append(f"after {result}")
            return "changed"

    class Last:
        @hookimpl(trylast=True)
        def on_readable(self, conn: object) -> str:
            calls.append("last")
            return "end"

    class First:
        @hookimpl(tryfirst=True)
        def on_readable(self, conn: object) -> None:
            calls.append("first")

    hooks = Hooks(
        [
            NamedPlugin("last", Last()),
            NamedPlugin("wrapper", Wrapper()),
            plugin("plain", on_readable=recorder(calls, "plain")),
            NamedPlugin("first", First()),
        ]
    )
    assert call(hooks.on_readable, CONN) == "changed"
    assert calls == ["before", "first", "plain", "last", "after end"]


@pytest.mark.parametrize("hook", ["on_connection_init", "on_readable"])
@pytest.mark.parametrize("result", [True, False, 0, "", []])
def test_any_result_but_none_ends_a_chain(hook: str, result: object) -> None:
    calls: list[str] = []
    hooks = Hooks(
        [
            plugin("first", **{hook: recorder(calls, "first")}),
            plugin("refuses", **{hook: recorder(calls, "refuses", result)}),
            plugin("handler", **{hook: recorder(calls, "handler")}),
        ]
    )
    assert call(getattr(hooks, hook), CONN) == result
    assert calls == ["first", "refuses"]


@pytest.mark.parametrize("hook", ["on_writable", "on_drain"])
def test_a_result_ends_nothing_in_the_other_hooks(hook: str) -> None:
    calls: list[str] = []
    hooks = Hooks([plugin(name, **{hook: recorder(calls, name, "result")}) for name in ("first", "handler")])
    call(getattr(hooks, hook), CONN)
    assert calls == ["first", "handler"]


@pytest.mark.parametrize("raising", ["first", "second", "third"])
def test_the_one_that_raised_is_blamed(raising: str) -> None:
    def helper() -> None:
        raise KeyError(raising)

    def fails(self: object, conn: object) -> None:
        helper()

    def passes(self: object, conn: object) -> None: ...

    # Functions of their own for each: the same function in two plugins can't be told apart.
    methods = {"first": recorder([], "first"), "second": recorder([], "second"), "third": passes}
    methods[raising] = fails
    hooks = Hooks([plugin(name, on_readable=method) for name, method in methods.items()])
    with pytest.raises(KeyError) as error:
        call(hooks.on_readable, CONN)
    assert hooks.culprit(error.value) == raising


def test_what_came_out_of_no_hook_is_blamed_on_the_handler() -> None:
    hooks = Hooks([plugin("first", on_readable=recorder([], "")), plugin("handler", on_drain=recorder([], ""))])
    with pytest.raises(ZeroDivisionError) as error:
        _ = 1 / 0
    assert hooks.culprit(error.value) == "handler"


SPECIFIED = {
    "on_connection_close": ("conn", "reason"),
    "on_child_exit": ("child", "conn"),
    "on_worker_start": ("worker",),
    "on_worker_stop": ("worker",),
}


@pytest.mark.parametrize("hook", sorted(SPECIFIED))
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)])
def test_a_notification_reaches_every_plugin_even_if_one_raises(hook: str, error: BaseException) -> None:
    calls: list[str] = []

    def make(name: str) -> NamedPlugin:
        def notice(self: object) -> None:
            calls.append(name)
            if name == "second":
                raise error

        return plugin(name, **{hook: notice})

    hooks = Hooks([make("first"), make("second"), make("handler")])
    faults: list[tuple[str, str, BaseException]] = []
    hooks.fault_handler = lambda hook, name, arguments, error: faults.append((hook, name, error))
    call(getattr(hooks, hook), *SPECIFIED[hook])
    assert calls == ["first", "second", "handler"]
    assert faults == [(hook, "second", error)]


def test_the_notifications_are_those_of_the_contract() -> None:
    assert set(SPECIFIED) == NOTIFICATIONS
    assert set(HOOK_NAMES) >= NOTIFICATIONS


def test_a_fault_is_logged_with_plugin_and_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def fails(self: object) -> None:
        raise ValueError("the cause")

    call(Hooks([plugin("faulty", on_connection_close=fails)]).on_connection_close, CONN, "eof")
    (record,) = caplog.records
    assert record.getMessage() == "plugin 'faulty' failed in on_connection_close"
    assert "ValueError: the cause" in caplog.text


# -- who is told that a connection has closed, when the chain of on_connection_init ended early


def closing(
    *, init: dict[str, object], closes: tuple[str, ...] = ("first", "second", "handler")
) -> tuple[Hooks, list[str]]:
    """Three plugins: those in ``init`` have ``on_connection_init`` with that result (or raise it)."""
    told: list[str] = []

    def make(name: str) -> NamedPlugin:
        def begin(self: object, conn: object) -> object:
            result = init[name]
            if isinstance(result, Exception):
                raise result
            return result

        def end(self: object, conn: object, reason: str) -> None:
            told.append(f"{name} {reason}")

        methods: dict[str, Callable[..., object]] = {"on_readable": lambda self, conn: None}
        if name in init:
            methods["on_connection_init"] = begin
        if name in closes:
            methods["on_connection_close"] = end
        return plugin(name, **methods)

    return Hooks([make("first"), make("second"), make("handler")]), told


@pytest.mark.parametrize(
    ("init", "told"),
    [
        ({"first": None, "second": "refused", "handler": None}, ["first", "second"]),
        ({"first": "refused", "second": None, "handler": None}, ["first"]),
        ({"first": None, "second": None, "handler": "end"}, ["first", "second", "handler"]),
        # Without the hook a plugin is reached where it comes before one that was.
        ({"second": "refused", "handler": None}, ["first", "second"]),
        ({"first": "refused"}, ["first"]),
        ({"second": "refused"}, ["first", "second"]),
    ],
)
def test_only_those_are_told_that_the_chain_had_reached(init: dict[str, object], told: list[str]) -> None:
    hooks, calls = closing(init=init)
    assert call(hooks.on_connection_init, CONN) is not None
    call(hooks.closer_after_ended_chain(), CONN, "refused")
    assert calls == [f"{name} refused" for name in told]


def test_one_that_raised_has_been_reached() -> None:
    hooks, calls = closing(init={"first": None, "second": BlockingIOError(), "handler": None})
    with pytest.raises(BlockingIOError):
        call(hooks.on_connection_init, CONN)
    call(hooks.closer_after_ended_chain(), CONN, "plugin failed")
    assert calls == ["first plugin failed", "second plugin failed"]


def test_each_chain_has_a_closer_of_its_own() -> None:
    init: dict[str, object] = {"first": None, "second": None, "handler": None}
    hooks, calls = closing(init=init)
    for refusing, expected in [("second", 2), ("first", 1), ("second", 2), ("handler", 3)]:
        init.update(dict.fromkeys(init), **{refusing: "refused"})
        call(hooks.on_connection_init, CONN)
        closer = hooks.closer_after_ended_chain()
        calls.clear()
        call(closer, CONN, "x")
        assert len(calls) == expected


def test_there_is_no_closer_where_none_of_them_wants_to_know() -> None:
    hooks, _ = closing(init={"first": None, "second": "refused"}, closes=("handler",))
    call(hooks.on_connection_init, CONN)
    assert hooks.closer_after_ended_chain() is None


# -- hooks that can't be used


def test_a_misspelt_hook_is_an_error_that_names_the_plugin() -> None:
    with pytest.raises(HookError, match=r"^plugin 'bad': unknown hook 'on_readble'"):
        Hooks([plugin("bad", on_readble=recorder([], ""))])


def test_an_argument_that_the_hook_has_not_is_an_error_that_names_the_plugin() -> None:
    def wrong(self: object, connection: object) -> None: ...

    with pytest.raises(HookError, match=r"^plugin 'bad': .*on_readable.*connection"):
        Hooks([plugin("good", on_readable=recorder([], "")), plugin("bad", on_readable=wrong)])


class Parent:
    @hookimpl
    def on_readable(self, conn: object) -> None:
        raise ValueError("in the parent's hook")


class ChildA(Parent):
    pass


class ChildB(Parent):
    pass


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_plugin_that_inherits_a_hook_is_blamed_by_its_instance(name: str) -> None:
    hooks = Hooks([NamedPlugin("a", ChildA()), NamedPlugin("b", ChildB())])
    (plugin,) = (one for one in hooks.plugins if one.name == name)
    with pytest.raises(ValueError, match="hook") as raised:
        plugin.instance.on_readable(None)  # type: ignore[attr-defined]
    assert hooks.culprit(raised.value) == name
