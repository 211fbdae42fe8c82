"""Conformance: a dialogue is played to a plugin in all the ways in which a network, a client or a server may have it.

Each play is a function below, listed in ``PLAYS``. The first tells whether the plugin does what the dialogue says at
all; where it does not, the others would only repeat that.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..plugins.loader import class_of
from ..plugins.plugin_class import hooks_of
from .dialogue import Dialogue
from .findings import Finding, NotConforming
from .harness import Harness, class_named
from .stage import Stage, raising

MOST_POINTS: Final = 64
BULK: Final = 131072  # bytes

_OVER_RELOAD: Final = (
    "state kept in one worker is lost in a reload, and when a worker is replaced: keep it in a file or another"
    " server; if the plugin writes it in on_worker_stop, set exclusive = True, so that the old worker has stopped"
    " before the new one starts"
)
_OVER_WORKERS: Final = (
    "state kept in one worker is not seen by the others: set requires_workers = 1 or exclusive = True in the class, or"
    " keep it in a file or another server"
)
_HOOKS_OF_CONNECTIONS: Final = (
    "on_connection_init",
    "on_readable",
    "on_writable",
    "on_child_exit",
    "on_drain",
    "on_connection_close",
)


def assert_conforms(
    plugin: type[Any] | str,
    dialogue: Dialogue | Sequence[tuple[bytes, bytes]],
    options: Mapping[str, Any] | None = None,
    *,
    skip: Collection[str] = (),
    points: int = MOST_POINTS,
    bulk: int = BULK,
    **arguments: Any,
) -> None:
    """Play a dialogue as ``conformance`` does.

    :raises NotConforming: something differs; the message shows what.
    """
    findings = conformance(plugin, dialogue, options, skip=skip, points=points, bulk=bulk, **arguments)
    if findings:
        raise NotConforming(findings)


def conformance(
    plugin: type[Any] | str,
    dialogue: Dialogue | Sequence[tuple[bytes, bytes]],
    options: Mapping[str, Any] | None = None,
    *,
    skip: Collection[str] = (),
    points: int = MOST_POINTS,
    bulk: int = BULK,
    **arguments: Any,
) -> list[Finding]:
    """Play a dialogue to a plugin in many ways, each with a fresh instance in a fresh directory.

    :param plugin: its class, or the name of an installed one.
    :param dialogue: what a client sends and the answers it expects; a list of such pairs will do.
    :param options: the plugin's table of the config. Relative paths are relative to the fresh directory.
    :param skip: names of plays to leave out: ``"reload"``. See ``PLAYS``.
    :param points: at how many places, at most, the dialogue is cut off.
    :param bulk: bytes to which the dialogue is repeated, sent at once.
    :param arguments: as a ``Harness`` takes them: further plugins, keys of the listener.
    :returns: what differs; nothing, where the plugin conforms.
    :raises ConfigErrors: the options can't be used.
    :raises ValueError: ``skip`` has an unknown play.
    """
    if unknown := set(skip) - set(PLAYS):
        raise ValueError(f"no play {sorted(unknown)}, expected some of {sorted(PLAYS)}")
    if not isinstance(dialogue, Dialogue):
        dialogue = Dialogue(dialogue)
    with tempfile.TemporaryDirectory(prefix="poolsrv-conformance-") as folder:
        stage = Stage(class_named(plugin), options, dialogue, arguments, Path(folder))
        in_steps(stage)
        if not stage.findings:
            for name, play in PLAYS.items():
                if name not in skip:
                    play(stage, points, bulk)
        findings = stage.findings
        del stage
        gc.collect()  # instances in a reference cycle may hold descriptors
        return findings


# --- the same bytes in different pieces


def in_steps(stage: Stage) -> None:
    """Each step in one piece, the next one after the answer."""
    with stage.play("step by step") as harness:
        client = harness.connect()
        received = stage.step_by_step(harness, client)
        stage.compare("step by step", None, client, received, stage.dialogue.answers)


def byte_by_byte(stage: Stage, points: int, bulk: int) -> None:
    """Each byte by itself."""
    with stage.play("byte by byte") as harness:
        client = harness.connect()
        received = stage.step_by_step(harness, client, piece=1)
        stage.compare("byte by byte", None, client, received, stage.dialogue.answers)


def pipelined(stage: Stage, points: int, bulk: int) -> None:
    """All steps in one piece."""
    with stage.play("pipelined, in one piece") as harness:
        client = harness.connect()
        client.send(stage.dialogue.sent)
        received = stage.wait_for(harness, client, len(stage.dialogue.answers))
        stage.compare("pipelined, in one piece", None, client, received, stage.dialogue.answers)


def in_bulk(stage: Stage, points: int, bulk: int) -> None:
    """The dialogue many times in one piece: where it has the same answers the second time."""
    dialogue = stage.dialogue
    if not _repeats(stage):
        return
    times = max(bulk // len(dialogue.sent), 2)
    answer = dialogue.answers[len(dialogue.greeting) :]
    expected = dialogue.greeting + answer * times
    for name, finishes in (("pipelined, many times", False), ("pipelined, many times, with a half-close", True)):
        if finishes and _aborts(stage):
            return
        with stage.play(name) as harness:
            client = harness.connect()
            if finishes:
                client.send(dialogue.sent * times, then="send_eof")
                received = stage.wait_for_end(harness, client)
            else:
                client.send(dialogue.sent * times)
                received = stage.wait_for(harness, client, len(expected))
            if not stage.compare(name, None, client, received, expected):
                return


def stopped_reader(stage: Stage, points: int, bulk: int) -> None:
    """A client that reads only after it has sent everything; and one that never reads, and resets."""
    dialogue = stage.dialogue
    times = max(bulk // len(dialogue.sent), 2) if _repeats(stage) else 1
    expected = dialogue.greeting + dialogue.answers[len(dialogue.greeting) :] * times
    with stage.play("with a reader that stops") as harness:
        client = harness.connect()
        client.stop_reading()
        client.send(dialogue.sent * times)
        harness.run(lambda: not harness.busy, 0.1)
        client.resume_reading()
        received = stage.wait_for(harness, client, len(expected))
        stage.compare("with a reader that stops", None, client, received, expected)
    with stage.play("with a reader that stops, and resets") as harness:
        client = harness.connect()
        client.stop_reading()
        client.send(dialogue.sent * times, then="reset")


# --- cut off at every point


def half_close(stage: Stage, points: int, bulk: int) -> None:
    """A client that finishes sending at each point: it gets the answers to all complete steps."""
    dialogue, name = stage.dialogue, "with a half-close"
    aborts = _aborts(stage)
    for point in dialogue.points(points):
        with stage.play(name, point) as harness:
            client = harness.connect()
            client.send(dialogue.sent[:point], then="send_eof")
            received = stage.wait_for_end(harness, client)
            whole = point == len(dialogue.sent)
            expected = b"" if aborts else dialogue.due(point)
            stage.compare(name, point, client, received, expected, at_least=not whole or aborts)
            if not client.closed:
                cause = "it is held: hold() without release(), or a program that still runs" if harness.busy else ""
                problem = "the connection stays open after the client has finished sending"
                stage.findings.append(Finding(name, point, problem, (), cause))


def reset(stage: Stage, points: int, bulk: int) -> None:
    """A client that resets at each point: nothing fails, no connection stays open, and others are served as before."""
    dialogue, name = stage.dialogue, "with a reset"
    for point in dialogue.points(points):
        with stage.play(name, point) as harness:
            client = harness.connect()
            client.send(dialogue.sent[:point], then="reset")
        if point in dialogue.boundaries:
            # With the answers read before, it is certain what the plugin has done.
            done = dialogue.boundaries.index(point)
            with stage.play(name, point) as harness:
                client = harness.connect()
                stage.step_by_step(harness, client, done)
                client.reset()
                _next_is_served(stage, harness, name, point, done)


def drain(stage: Stage, points: int, bulk: int) -> None:
    """The worker is told to end at each point: steps that are complete by then are answered."""
    dialogue, name = stage.dialogue, "with a drain"
    aborts = _aborts(stage)
    for point in dialogue.points(points):
        with stage.play(name, point) as harness:
            client = harness.connect()
            # Where several steps are under way, a protocol may answer the first alone, and say that it closes.
            begun = max(sum(end <= point for end in dialogue.boundaries) - 2, 0)
            stage.step_by_step(harness, client, begun)
            client.send(dialogue.sent[dialogue.boundaries[begun] : point])
            harness.drain()
            received = stage.wait_for(harness, client, len(dialogue.due(point)))
            stage.compare(name, point, client, received, dialogue.due(point), at_least=True)
            if not client.closed:
                client.send(dialogue.sent[point:])
                client.send_eof()
                received = stage.wait_for_end(harness, client)
                if not aborts:
                    stage.compare(name, point, client, received, dialogue.due(point), at_least=True)


# --- the plugin's own faults, and what its worker knows


def hooks_raise(stage: Stage, points: int, bulk: int) -> None:
    """Every hook raises once, instead of its own code and after it: that costs one connection."""
    for hook in _HOOKS_OF_CONNECTIONS:
        if hook in hooks_of(class_of(stage.plugin)) and hasattr(class_of(stage.plugin), hook):
            for at_end in (False, True):
                name = f"with {hook} raising once, {'after' if at_end else 'instead of'} its own code"
                with stage.play(name, None, raising(stage.plugin, hook, at_end)) as harness:
                    client = harness.connect()
                    stage.step_by_step(harness, client, 1)
                    if hook == "on_drain":
                        harness.drain()
                    client.close()
                    if hook != "on_drain":
                        done = 1 if at_end or hook not in ("on_connection_init", "on_readable") else 0
                        _next_is_served(stage, harness, name, None, done)


def over_workers(stage: Stage, points: int, bulk: int) -> None:
    """Each step by a client of its own, alternating between two workers: the answers are those of one worker."""
    cls = class_of(stage.plugin)
    if getattr(cls, "exclusive", False) or getattr(cls, "requires_workers", None) == 1:
        return
    name = "over two workers"

    def turn(harness: Harness, number: int) -> int:
        if number == 0:
            harness.add_worker()
        return number % 2

    _compare_over(stage, name, turn, _OVER_WORKERS)


def over_reload(stage: Stage, points: int, bulk: int) -> None:
    """Each step by a client of its own, with a reload before each: the answers are those without a reload."""

    def turn(harness: Harness, number: int) -> None:
        if number:
            harness.reload()

    _compare_over(stage, "over a reload", turn, _OVER_RELOAD)


PLAYS: Final[Mapping[str, Callable[[Stage, int, int], None]]] = {
    "bytes": byte_by_byte,
    "pipelined": pipelined,
    "bulk": in_bulk,
    "reader": stopped_reader,
    "half-close": half_close,
    "reset": reset,
    "drain": drain,
    "hooks": hooks_raise,
    "workers": over_workers,
    "reload": over_reload,
}


# --- shared by the plays


def _repeats(stage: Stage) -> bool:
    """Whether the dialogue has the same answers when it is played a second time on the same connection."""
    return stage.once("repeats", _finds_repeating)


def _finds_repeating(stage: Stage) -> bool:
    probe = stage.apart()
    with probe.play("twice") as harness:
        client = harness.connect()
        dialogue = stage.dialogue
        answer = dialogue.answers[len(dialogue.greeting) :]
        if probe.step_by_step(harness, client) != dialogue.answers or client.closed:
            return False
        client.send(dialogue.sent)
        return probe.wait_for(harness, client, len(dialogue.answers + answer)) == dialogue.answers + answer


def _aborts(stage: Stage) -> bool:
    """Whether a client that finishes sending counts as gone."""
    return stage.once("aborts", _finds_aborting)


def _finds_aborting(stage: Stage) -> bool:
    probe = stage.apart()
    with probe.play("half_close") as harness:
        return harness.half_close == "abort"


def _next_is_served(stage: Stage, harness: Harness, name: str, point: int | None, done: int) -> None:
    """Compare what the next client gets with what it gets after one that has ended in order.

    :param done: how many steps the client before has had answered.
    """
    probe = stage.apart()
    with probe.play("in order") as orderly:
        before = orderly.connect()
        if done:
            probe.step_by_step(orderly, before, done)
        before.close()
        expected = probe.step_by_step(orderly, orderly.connect())
    client = harness.connect()
    received = stage.step_by_step(harness, client)
    stage.compare(name, point, client, received, expected, problem="the next client gets something else")


def _compare_over(stage: Stage, name: str, turn: Callable[[Harness, int], int | None], cause: str) -> None:
    """Play each step, and then each once more, by a client of its own; before each, ``turn`` says which worker
    serves."""
    expected = _by_single_clients(stage.apart(), "in one worker", lambda harness, number: None)
    received = _by_single_clients(stage, name, turn)
    for number, (one, other) in enumerate(zip(expected, received, strict=True)):
        if one != other:
            sent = stage.dialogue.steps[number % len(stage.dialogue.steps)][0]
            again = ", the second time" if number >= len(stage.dialogue.steps) else ""
            details = (f"sent:     {sent!r}{again}", f"in one worker: {one!r}", f"{name}: {other!r}")
            stage.findings.append(Finding(name, None, "a later client gets something else", details, cause))
            return


def _by_single_clients(stage: Stage, name: str, turn: Callable[[Harness, int], int | None]) -> list[bytes]:
    answers = []
    with stage.play(name) as harness:
        for number, (sent, answer) in enumerate(stage.dialogue.steps * 2):
            client = harness.connect(slot=turn(harness, number))
            size = len(stage.dialogue.greeting) + len(answer)
            client.send(sent)
            answers.append(stage.wait_for(harness, client, size))
            client.close()
    return answers
