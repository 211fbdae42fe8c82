"""The place in a hung process's stack dump that is shown, and the plugin that is named."""

from __future__ import annotations

import faulthandler
import os
import threading

from poolsrv import hookimpl
from poolsrv.core.stack_dump import StackDumpFile
from poolsrv.worker.hooks import NamedPlugin


class Here:
    """A plugin in this module."""

    @hookimpl
    def on_readable(self, conn: object) -> None: ...


def dump(file: StackDumpFile, **options: bool) -> None:
    faulthandler.dump_traceback(file.fileno(), **options)


def test_the_plugin_in_which_the_worker_hangs_is_named() -> None:
    file = StackDumpFile()
    dump(file)
    plugins = [NamedPlugin("other", socketless()), NamedPlugin("here", Here())]
    assert file.describe(plugins).startswith(f"it hangs in plugin 'here' (dump, {__file__}:")
    file.close()


def socketless() -> object:
    """An instance of a class whose module has no file."""
    return object()


def test_without_a_plugin_on_the_stack_the_place_is_named() -> None:
    file = StackDumpFile()
    dump(file)
    assert file.describe([]).startswith(f"it hangs in dump, {__file__}:")
    file.close()


def test_a_worker_that_says_nothing_is_described_so() -> None:
    file = StackDumpFile()
    assert file.describe([]) == "and does not say where it hangs"
    file.close()


def test_the_stack_of_the_main_thread_counts_and_the_latest_one() -> None:
    file = StackDumpFile()
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    os.write(file.fileno(), b'Current thread 0x1 (most recent call first):\n  File "old.py", line 1 in old\n')
    dump(file, all_threads=True)
    release.set()
    thread.join()
    assert file.describe([NamedPlugin("here", Here())]).startswith("it hangs in plugin 'here' (dump, ")
    file.close()
