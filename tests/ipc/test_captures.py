"""Captures as a program that has the server's rights may have written them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poolsrv.ipc.captures import BadCapture, Capture, decoded, encoded

GOOD: dict[str, Any] = {
    "id": "abcdefgh",
    "at": 1.0,
    "listener": "www",
    "program": "/x",
    "protocol": "http",
    "command": ["/bin/true"],
    "environment": {"A": "1"},
}


def test_a_capture_is_read_as_it_was_written() -> None:
    capture = Capture(**GOOD, stderr=["\udcff"], returncode=-9)
    assert decoded(encoded(capture)) == capture


@pytest.mark.parametrize("field", ["at", "took", "cpu"])
@pytest.mark.parametrize("value", [1e300, float("inf"), float("nan"), -1.0])
def test_times_that_are_none_are_refused(field: str, value: float) -> None:
    with pytest.raises(BadCapture):
        decoded(json.dumps({**GOOD, field: value}).encode())


@pytest.mark.parametrize(("field", "value"), [("returncode", 10**30), ("returncode", -256), ("status", -1)])
def test_numbers_out_of_their_range_are_refused(field: str, value: int) -> None:
    with pytest.raises(BadCapture):
        decoded(json.dumps({**GOOD, field: value}).encode())
