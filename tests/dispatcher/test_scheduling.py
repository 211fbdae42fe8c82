"""The policy that the kernel schedules a dispatcher by (sched(7)); test_process.py has that of whole servers."""

from __future__ import annotations

import os
import threading

from poolsrv.dispatcher import process


def test_a_policy_that_was_chosen_on_purpose_stays() -> None:
    # In a thread: beside busy processes, a whole server with this policy might never get ready.
    policies: list[int] = []

    def find() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        policies.append(process._schedule(os.SCHED_OTHER, os.SCHED_BATCH))
        policies.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=find)
    thread.start()
    thread.join()
    assert policies == [False, os.SCHED_IDLE]
