"""What explains a lost request, and what does not; and what the verdict makes of the books. No server here."""

from __future__ import annotations

import json
import time
from typing import Any

from tools.chaos.attribution import attribute
from tools.chaos.books import Books, Form, Lost, Visit
from tools.chaos.damage import Damage, Trouble
from tools.chaos.evidence import Evidence
from tools.chaos.server import LogLine

DISPATCHER, WORKER = 10, 11
PEER = "127.0.0.1:4000"


def line(message: str, at: float = 100.0, pid: int = DISPATCHER, **fields: Any) -> LogLine:
    return LogLine(at, "info", "dispatcher", pid, message, fields)


def evidence(
    *, closed: str = "", requests: tuple[dict[str, Any], ...] = (), lines: tuple[LogLine, ...] = ()
) -> Evidence:
    """A worker that has had one connection from time 100 on."""
    found = Evidence()
    journal = [f"100.000000 {WORKER} open 1 www {PEER}"]
    if closed:
        journal.append(f"101.000000 {WORKER} close 1 www {closed}")
    found.read_journal(journal)
    found.read_access_log(map(json.dumps, requests))
    found.read_log([line(f"worker 0 (pid {WORKER}) serves"), *lines])
    return found


def lost(**changes: Any) -> Lost:
    fields: dict[str, Any] = {
        "kind": "one request",
        "number": 7,
        "visit": Visit("www", PEER, 99.99, ended=102.0),
        "why": "before a response",
        "began": 100.1,
        "at": 101.1,
        **changes,
    }
    return Lost(**fields)


def cause(one: Lost, damage: Damage, found: Evidence) -> str | None:
    attribution = attribute(Books(lost=[one]), damage, found)
    return next((cause for _, cause in attribution.causes), None)


def test_a_loss_belongs_to_the_worker_that_had_the_connection() -> None:
    assert cause(lost(), Damage(killed={WORKER: (101.0, "killed")}), evidence()) == "killed"
    assert cause(lost(), Damage(killed={DISPATCHER: (101.0, "killed")}), evidence()) == "killed"
    assert cause(lost(), Damage(killed={12: (101.0, "killed")}), evidence()) is None  # another one
    assert cause(lost(), Damage(killed={WORKER: (105.0, "killed")}), evidence()) is None  # later


def test_a_connection_that_no_worker_has_seen_is_attributed_by_time() -> None:
    unseen = Visit("www", "127.0.0.1:4001", 99.99, ended=102.0)
    assert cause(lost(visit=unseen), Damage(killed={WORKER: (101.0, "killed")}), evidence()) == "killed"
    assert cause(lost(visit=unseen), Damage(killed={WORKER: (90.0, "killed")}), evidence()) is None


def test_the_kernel_s_kill_for_want_of_memory_explains() -> None:
    end = line(f"worker 0 (pid {WORKER}) killed by SIGKILL by the kernel, out of memory, 1 connection is lost", 101.0)
    found = evidence(lines=(end,))
    assert cause(lost(), Damage(), found) == "the kernel killed a worker, out of memory"
    assert found.ends[WORKER].lost == 1


def test_a_program_that_was_killed_explains_what_a_client_can_see() -> None:
    killed = {"request": "GET /run/slow.sh?7 HTTP/1.1", "status": 200, "signal": 9}
    damage = Damage(programs={50: 100.5})
    assert cause(lost(), damage, evidence(requests=(killed,))) == "a program was killed"
    assert cause(lost(), Damage(), evidence(requests=(killed,))) is None  # nobody has killed one
    assert cause(lost(number=8), damage, evidence(requests=(killed,))) is None  # another request
    assert cause(lost(form=Form.LOOKS_WHOLE), damage, evidence(requests=(killed,))) is None


def test_what_a_worker_has_answered_was_not_lost_with_it() -> None:
    """Although it died so soon after that the times could be the same."""
    refused = {"request": "POST /run/warm.py?7 HTTP/1.1", "status": 500}
    damage = Damage([Trouble("few processes", 100.0, until=101.0)], killed={WORKER: (101.1, "killed")})
    for one, found, why in (
        (lost(status=500), evidence(closed="eof", requests=(refused,)), "refused with 500: few processes"),
        (lost(form=Form.REFUSED), evidence(closed="refused"), "refused: few processes"),
    ):
        attribution = attribute(Books(lost=[one]), damage, found)
        assert [cause for _, cause in attribution.causes] == [why]
        assert not attribution.of_worker
    assert attribute(Books(lost=[lost()]), damage, evidence()).of_worker == {WORKER: 1}


def test_an_error_is_explained_if_it_was_counted_and_something_was_scarce() -> None:
    refused = {"request": "POST /run/warm.py?7 HTTP/1.1", "status": 507}
    damage = Damage([Trouble("a full disk", 100.0, until=101.0)])
    assert cause(lost(status=507), damage, evidence(requests=(refused,))) == "refused with 507: a full disk"
    assert cause(lost(status=507), damage, evidence()) is None  # it is in no log
    assert cause(lost(status=507), Damage(), evidence(requests=(refused,))) is None  # there was room
    untried = Damage([Trouble("a full disk", 100.0, until=101.0, tried=False)])
    assert cause(lost(status=507), untried, evidence(requests=(refused,))) is None
    missing = {"request": "GET /run/warm.py?7 HTTP/1.1", "status": 404}
    assert cause(lost(status=404), damage, evidence(requests=(missing,))) is None  # the file is there


def test_wrong_bytes_are_never_explained() -> None:
    damage = Damage(killed={WORKER: (101.0, "killed")})
    assert cause(lost(form=Form.WRONG), damage, evidence()) is None


def test_an_idle_connection_may_be_closed_but_no_other() -> None:
    idle = Visit("www", PEER, 99.99, ended=105.0, answered_at=98.0)
    assert "idle" in str(cause(lost(kind="keep-alive", visit=idle, began=101.0), Damage(), evidence(closed="drain")))
    busy = Visit("www", PEER, 99.99, ended=105.0, answered_at=100.9)
    assert cause(lost(kind="keep-alive", visit=busy, began=101.0), Damage(), evidence(closed="drain")) is None


def test_a_client_may_see_late_that_a_worker_has_opened_its_connection() -> None:
    damage = Damage(killed={WORKER: (100.3, "killed")})
    late = Visit("www", PEER, 101.0, ended=102.0, tried=99.99)
    assert cause(lost(visit=late), damage, evidence()) == "killed"
    assert cause(lost(visit=Visit("www", PEER, 101.0, ended=102.0, tried=100.9)), damage, evidence()) is None


def test_clients_of_a_unix_socket_have_no_name_and_say_which_worker_has_answered() -> None:
    nameless = Visit("www", "unix::0", 99.99, ended=102.0, pid=WORKER)
    found = evidence()
    found.read_journal(["100.0 99 open 5 www unix::0"])
    assert found.entry_of(nameless) is None
    assert cause(lost(visit=nameless), Damage(killed={WORKER: (101.0, "killed")}), found) == "killed"


def test_the_most_connections_at_a_time_are_counted_in_each_pool() -> None:
    found = Evidence()
    found.read_journal(
        [
            "1.0 11 open 1 tight a",
            "2.0 11 open 2 tight b",
            "3.0 11 close 1 tight eof",
            "4.0 11 open 3 tight c",
            "4.5 21 open 4 tight d",  # in another pool
            "5.5 21 close 4 tight eof",
            "6.0 12 open 5 tight e",  # after the death of worker 11, which had two
        ]
    )
    found.dispatcher_of.update({11: 10, 12: 10, 21: 20})
    assert found.most_open("tight", {11: 5.0}, {10}) == (2, 10)
    assert found.most_open("tight", {}, {20}) == (1, 20)


def test_the_books_count_what_the_clients_see() -> None:
    books = Books()
    visit = books.connected("www", PEER)
    began = books.began("one request")
    books.has_answered("one request", visit, began, http_number=3)
    books.began("one request")
    books.has_lost("one request", 4, visit, began, "reset")
    assert (books.requests["one request"], books.answered["one request"], len(books.lost)) == (2, 1, 1)
    assert [number for number, _, _ in books.done] == [3]
    assert 0 <= books.quantile("one request", 0.5) <= time.monotonic() - began
    assert books.quantile("none", 0.5) == 0.0


def test_a_worker_s_death_does_not_excuse_what_it_had_closed_before() -> None:
    damage = Damage(killed={WORKER: (101.5, "killed")})
    assert cause(lost(at=102.0), damage, evidence()) == "killed"
    assert cause(lost(at=102.0), damage, evidence(closed="eof")) is None


def test_a_connection_that_no_descriptor_was_left_for_is_in_the_log() -> None:
    unseen = Visit("www", "127.0.0.1:4001", 99.99, ended=102.0)
    damage = Damage([Trouble("few descriptors for a worker", 100.0, until=101.0)])
    found = evidence(lines=(line("www: a connection was lost at the limit of open descriptors", 100.5),))
    assert cause(lost(visit=unseen), damage, found) == "lost, as the log says: few descriptors for a worker"
    assert cause(lost(visit=unseen), damage, evidence()) is None
    assert cause(lost(visit=unseen), Damage(), found) is None
