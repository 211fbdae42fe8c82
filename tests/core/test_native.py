"""What mypyc makes of a class that the compiled wheel has: here on the sources, so that it is known without a build."""

from __future__ import annotations

import ast
import os

import pytest

from poolsrv.core.event_loop import EventLoop
from poolsrv.net.stream import Pipe
from tests.helpers.sources import nodes
from tests.helpers.wheels import ROOT
from tools.compiled import FILES


def test_no_constructor_would_run_twice() -> None:
    """Of a class without a constructor of its own whose base allows subclasses in plain Python, both what is its own
    (`__new__`) and what it inherits (`tp_init`) would call the base's, unless it allows them too. What the first call
    has set would never be freed."""
    classes = {node.name: node for name in FILES for node in nodes(ROOT / name) if isinstance(node, ast.ClassDef)}
    derived = 0
    for node in classes.values():
        bases = [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
        if any(_allows_subclasses(base) for base in bases) and not _has_constructor(node):
            assert _allows_subclasses(node), node.name
            derived += 1
    assert derived


def _allows_subclasses(node: ast.ClassDef) -> bool:
    return any("allow_interpreted_subclasses" in ast.unparse(decorator) for decorator in node.decorator_list)


def _has_constructor(node: ast.ClassDef) -> bool:
    return any(isinstance(item, ast.FunctionDef) and item.name == "__init__" for item in node.body)


def test_the_constructor_of_a_pipe_runs_once(loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "set_blocking", lambda fd, blocking: calls.append(fd))
    ours, theirs = os.pipe()
    Pipe(loop, ours)
    assert calls == [ours]
    os.close(ours)
    os.close(theirs)
