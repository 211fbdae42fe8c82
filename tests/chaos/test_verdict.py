"""The verdict: it fails where a figure does not fit. No server here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers import statuses
from tools.chaos.attribution import Attribution, attribute
from tools.chaos.books import Books
from tools.chaos.damage import Damage, Trouble
from tools.chaos.evidence import Evidence
from tools.chaos.plan import Plan
from tools.chaos.report import summary, table, verdict_lines
from tools.chaos.server import LogLine
from tools.chaos.verdict import Measurement, Run, judge_run
from tools.chaos.wire import NotOpen

MEASURED = Measurement({"worker": 20 << 20}, {"worker": 80}, {"worker 11": ["socket:[1]", "/dev/null"]})


def run(**changes: Any) -> Run:
    """A run of three connections, of which one was refused, that went well but for these changes."""
    books = Books()
    for port in (1, 2):
        books.connected("www", f"127.0.0.1:{port}")
    books.has_refused(books.connected("www", "127.0.0.1:3"))
    evidence = Evidence()
    evidence.read_journal(f"{visit.began} 11 open {n} www 127.0.0.1:{n}" for n, visit in enumerate(books.visits[:2], 1))
    evidence.dispatcher_of[11] = 10
    listener = statuses.listener(open=0, queued=0, accepted=2, refusals={"max_connections": 1})
    fields: dict[str, Any] = {
        "books": books,
        "damage": Damage(dispatches=[(0.0, "round-robin")]),
        "evidence": evidence,
        "attribution": Attribution(),
        "status": statuses.status(listeners=[listener], workers=[statuses.worker(open=0)]),
        "first": MEASURED,
        "last": MEASURED,
        "left": [],
        "failures": [],
        **changes,
    }
    return Run(**fields)


def failed(judged: Run) -> list[str]:
    return [check.name for check in judge_run(judged) if check.wrong]


def test_a_run_in_which_all_adds_up() -> None:
    assert failed(run()) == []


def test_a_port_that_another_client_had_later() -> None:
    """A client that was reset at once has not been let in, although a later one with its port was."""
    judged = run()
    (refused,) = judged.books.refused
    assert NotOpen(refused, "reset at once", was_reset=True).visit is refused
    judged.evidence.read_journal([f"{refused.began + 100} 11 open 3 www {refused.peer}"])
    assert "refusals are counted" not in failed(judged)


def with_counts(**counts: Any) -> Run:
    listener = statuses.listener(
        **({"open": 0, "queued": 0, "accepted": 2, "refusals": {"max_connections": 1}} | counts)
    )
    return run(status=statuses.status(listeners=[listener], workers=[statuses.worker(open=0)]))


def logged(message: str, level: str = "error", **fields: Any) -> Run:
    judged = run()
    lines = [LogLine(1.0, level, "dispatcher", 10, message, fields)]
    judged.evidence.lines = lines
    judged.evidence.read_log(lines)
    return judged


def lost_without_cause() -> Run:
    judged = run()
    judged.books.has_lost("one request", 1, judged.books.visits[0], 0.0, "reset")
    judged.attribution = attribute(judged.books, judged.damage, judged.evidence)
    return judged


def logged_twice() -> Run:
    judged = run()
    judged.evidence.read_access_log(['{"request": "GET /?5 HTTP/1.1", "status": 200}'] * 2)
    return judged


def not_logged() -> Run:
    judged = run()
    judged.books.has_answered("one request", judged.books.visits[0], 0.0, http_number=5)
    return judged


WRONG: dict[str, Callable[[], Run]] = {
    "each lost request has a cause": lost_without_cause,
    "connections made were accepted or refused": lambda: with_counts(accepted=1),
    "refusals are counted": lambda: with_counts(accepted=3, refusals={}),
    "the access log has each request once": logged_twice,
    "each worker's end has a cause": lambda: logged("worker 0 (pid 11) killed by SIGSEGV, 1 connection is lost"),
    "the log tells of no fault of the server": lambda: logged("a plugin's callback failed", traceback="in poolsrv_cgi"),
    "at the end nothing is open": lambda: with_counts(open=1),
    "memory is where it was": lambda: run(last=Measurement({"worker": 30 << 20}, {"worker": 80})),
    "descriptors are as many as they were": lambda: run(
        last=Measurement({"worker": 20 << 20}, {"worker": 90}, {"worker 12": ["socket:[2]", "socket:[3]", "/dev/null"]})
    ),
    "nothing is left behind": lambda: run(left=["a process"]),
    "reloads, plugins and refusals do what they must": lambda: run(failures=["a broken config was taken over"]),
    "the server is well again after each": lambda: run(
        damage=Damage([Trouble("kill a worker", 1.0)], dispatches=[(0.0, "kernel")])
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_check_can_fail(name: str) -> None:
    assert name in failed(WRONG[name]())


def test_a_request_that_was_answered_and_is_not_logged() -> None:
    assert failed(not_logged()) == ["the access log has each request once"]


def test_a_worker_may_not_lose_more_than_the_dispatcher_knows() -> None:
    judged = logged("worker 0 (pid 11) killed by SIGKILL, 1 connection is lost")
    judged.damage.killed[11] = (1.0, "killed")
    judged.evidence.served_from[10] = 0.5
    judged.attribution.of_worker[11] = 1
    assert failed(judged) == []
    judged.attribution.of_worker[11] = 2
    assert failed(judged) == ["workers lose what the dispatcher says"]


def test_a_refusal_that_is_not_counted_is_excused_by_the_death_of_a_worker_alone() -> None:
    judged = with_counts(refusals={})
    judged.damage.dispatches.append((0.0, "kernel"))
    judged.evidence.served_from[10] = 0.5
    (refused,) = judged.books.refused
    for pid, excused in ((99, False), (11, True)):  # a program, the worker
        judged.damage.killed[pid] = (refused.began, "killed")
        assert ("refusals are counted" not in failed(judged)) == excused


def test_limits_are_counted_in_the_journal() -> None:
    judged = run()
    judged.evidence.served_from[10] = 0.5
    judged.evidence.read_journal(f"1.{n} 11 open {n} tight 127.0.0.1:{n}" for n in range(7))
    judged.evidence.read_journal([f"2.0 11 close {n} tight eof" for n in range(7)])
    for entry in judged.evidence.entries:
        entry.closed = entry.closed or 2.0
    assert failed(judged) == ["limits are strict"]


def test_meant_tracebacks_are_no_faults() -> None:
    assert (
        failed(logged("imp: plugin 'imp' failed in on_readable", traceback='File "/x/chaos_plugins.py", line 1')) == []
    )


def test_the_report_shows_what_does_not_hold() -> None:
    lines = verdict_lines(judge_run(with_counts(accepted=1)))
    assert any(line.startswith("FAILED connections made") for line in lines)
    assert any("3 connections made, 1 accepted, 1 refused" in line for line in lines)
    assert table(("a", "b"), [("long", 1), ("x", 22)]) == ["a      b", "long   1", "x     22"]


def test_the_end_of_the_report_is_short() -> None:
    """It says what has failed, where its traces are, and how to repeat it."""
    plan = Plan(17, 60.0, "kernel", ())
    troubles = [Trouble("reload", at, recovery=at - 0.5) for at in (1.0, 2.0)]
    troubles.append(Trouble("x", 3.0, tried=False))
    good = run(damage=Damage(troubles=troubles, dispatches=[(0.0, "round-robin")]))
    assert summary(plan, good, judge_run(good), "") == [
        "0 requests and connections, 0 lost, 0 with a cause",
        "2 disturbances of 1 kind; well again after 1.0 s in the median, 1.5 s at most",
        "seed 17, 60 s: passed, 14 checks",
    ]
    bad = run(left=["a process: 7", "a process: 8"])
    assert summary(plan, bad, judge_run(bad), "/tmp/x")[1:] == [
        "0 disturbances of 0 kinds",
        "FAILED nothing is left behind: a process: 7 (and 1 more)",
        "seed 17, 60 s: 1 of 14 checks FAILED",
        "the log, the journal and the access log: /tmp/x",
        "the same plan again: CHAOS_SEED=17 CHAOS_SECONDS=60 make chaos",
    ]
