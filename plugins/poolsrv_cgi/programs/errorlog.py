"""A program's standard error on its way to the log: by line, and never so much that other connections have to wait.

In one iteration of the worker only some lines of a program are logged. Until they are, no more is read, and a program
that writes on waits for the pipe. Lines above `stderr_rate` are dropped, and only their number is logged. The pipe is
then emptied with pauses, so that a flood costs the worker little; and it is made larger, so that a program that has
much to say gets on with its work all the same, also where a pause takes longer than it should.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import deque
from collections.abc import Callable

from poolsrv import Handle, Timer, Worker

from .timeouts import Deadlines

__all__ = ["FIRST_LOOK", "ErrorLog", "LineRate"]

READ_SIZE = 65536  # bytes; what a pipe holds at first
FLOOD_SIZE = 262144  # bytes; what it holds, and a read takes, while lines are dropped
READS_AFTER_END = 16  # at most, once the program has ended: processes that it has left may write on
MAX_LOG_LINE = 4096  # bytes; a longer line becomes several
LINES_PER_ITERATION = 32
LINES_KEPT = 20  # for the record of a run, and the log entry of a failure
BURST = 5.0  # seconds of its rate that a program may save up
LISTENER_SHARE = 10  # programs that may write at their full rate at the same time
COST_UNIT = 256  # bytes of a line that count as one
MUTE_TIME = 1.0  # seconds for which lines are dropped, once there are too many
PAUSE = 0.02  # seconds between two reads meanwhile
FIRST_LOOK = 0.02  # seconds from a program's start; its pipe holds what it says meanwhile


class LineRate:
    """A token bucket of lines.

    :param rate: lines per second; 0 is no limit.
    """

    __slots__ = ("_at", "_level", "_rate")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._level = rate * BURST
        self._at = time.monotonic()

    def is_empty(self) -> bool:
        """Whether no line may be logged now."""
        if not self._rate:
            return False
        now = time.monotonic()
        self._level = min(self._level + (now - self._at) * self._rate, self._rate * BURST)
        self._at = now
        return self._level < 1

    def take(self, cost: int) -> None:
        """Pay for what has been logged; that may be more than there was."""
        self._level -= cost


class ErrorLog:
    """The standard error of one program.

    :param rate: lines per second of this program; 0 is no limit.
    :param shared: what each line counts against besides.
    :param log: called with each line.
    :param first_looks: deadlines of FIRST_LOOK seconds.
    :ivar last_lines: the last lines of the program, logged or not.
    """

    __slots__ = (
        "_awaits_first_look", "_data", "_dropped", "_fd", "_first_looks", "_log", "_position", "_rate", "_rates",
        "_shared", "_timer", "_unmute_at", "_watch", "_worker", "last_lines",
    )  # fmt: skip

    def __init__(
        self, worker: Worker, rate: float, shared: LineRate, log: Callable[[str], object], first_looks: Deadlines
    ) -> None:
        self._worker = worker
        self._rate = rate
        self._shared = shared
        self._rates: tuple[LineRate, ...] = ()  # made for the first line: most programs write none
        self._log = log
        self._first_looks = first_looks
        self._awaits_first_look = False
        self._fd = -1
        self._watch: Handle | None = None
        self._timer: Timer | None = None  # for the next iteration, or the end of a pause
        self._data = b""  # read, and not logged
        self._position = 0  # in it
        self._dropped = 0
        self._unmute_at = 0.0  # monotonic; until then lines are dropped
        self.last_lines: deque[str] = deque(maxlen=LINES_KEPT)

    def open(self) -> int:
        """Make the pipe.

        :returns: the program's end, which the caller closes.
        :raises OSError: there are no descriptors left.
        """
        self._fd, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        return writer

    def begin(self) -> None:
        """Log what comes from now on.

        It is first looked at after a moment: most programs have ended by then and have said nothing, so that there is
        nothing to be watched and unwatched.
        """
        if self._fd >= 0 and self._watch is None and self._timer is None:
            self._awaits_first_look = True
            self._first_looks.add(self._look_first)

    def _look_first(self) -> None:
        self._awaits_first_look = False
        self._on_readable()

    def _await_more(self) -> None:
        if self._fd >= 0 and self._watch is None and self._timer is None:
            self._watch = self._worker.add_reader(self._fd, self._on_readable)

    def discard(self) -> None:
        """Close the pipe, and log nothing that is still in it."""
        self._stop()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def finish(self) -> None:
        """Log what is left, some of it now, and close the pipe: the program has ended."""
        if self._fd < 0:
            return
        pieces = [self._data[self._position :]]
        for _ in range(READS_AFTER_END):
            piece = self._read()
            if not piece:
                break
            pieces.append(piece)
        self._data, self._position = b"".join(pieces), 0
        self._end()

    # --- reading

    def _stop(self) -> None:
        """Cancel what would read or log more."""
        if self._awaits_first_look:
            self._awaits_first_look = False
            self._first_looks.remove(self._look_first)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read(self) -> bytes | None:
        """A piece; empty at the end, None where nothing is there now."""
        try:
            return os.read(self._fd, FLOOD_SIZE if self._unmute_at else READ_SIZE)
        except BlockingIOError:
            return None

    def _on_readable(self) -> None:
        piece = self._read()
        if piece == b"":
            self._end()
            return
        if piece:
            self._data = self._data[self._position :] + piece
            self._position = 0
        self._go_on()

    def _go_on(self) -> None:
        """Log some of what has been read; read on once all of it is logged."""
        more = self._log_lines()
        if not more and not self._unmute_at:
            self._await_more()
            return
        self._stop()
        self._timer = self._worker.call_later(0.0 if more else PAUSE, self._on_timer)

    def _on_timer(self) -> None:
        """Go on in the next iteration, or after a pause."""
        self._timer = None
        if self._position < len(self._data) and b"\n" in self._data:
            self._go_on()
        else:
            self._on_readable()

    def _end(self) -> None:
        """Close the pipe and log the rest: all has been read."""
        self.discard()
        if not self._data and not self._dropped:  # as of most programs
            self._log = _nothing  # no reference cycle
            return
        if self._data and not self._data.endswith(b"\n"):
            self._data += b"\n"
        self._log_rest()
        if self._position < len(self._data):
            self._keep_last(self._data)

    def _log_rest(self) -> None:
        """Log a part in each iteration, after the end."""
        more = self._log_lines()
        while more and self._worker.draining:  # there may be no further iteration
            more = self._log_lines()
        if more:
            self._worker.call_later(0.0, self._log_rest)
        else:
            self._log_dropped()
            self._log = _nothing  # no reference cycle

    # --- lines

    def _log_lines(self) -> bool:
        """Log some of the lines that are whole; True where there are more."""
        if self._is_muted():
            self._drop()
            return False
        for _ in range(LINES_PER_ITERATION):
            start = self._position
            line = self._next_line()
            if line is None:
                return False
            text = line.decode("utf-8", "backslashreplace").rstrip()
            if not text:
                continue
            if not self._rates:
                self._rates = LineRate(self._rate), self._shared
            if any(rate.is_empty() for rate in self._rates):
                self._position = start
                self._mute()
                return False
            for rate in self._rates:
                rate.take(1 + len(line) // COST_UNIT)
            self.last_lines.append(text)
            self._log(text)
        return True

    def _next_line(self) -> bytes | None:
        data, start = self._data, self._position
        end = data.find(b"\n", start, start + MAX_LOG_LINE + 1)
        if end >= 0:
            self._position = end + 1
            return data[start:end]
        if len(data) - start <= MAX_LOG_LINE:
            return None
        self._position = start + MAX_LOG_LINE
        return data[start : self._position]

    # --- dropping

    def _mute(self) -> None:
        """Drop lines for a while, and let the program write more between two reads."""
        self._unmute_at = time.monotonic() + MUTE_TIME
        if self._fd >= 0:
            try:
                fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, FLOOD_SIZE)
            except OSError:
                pass  # the user has too many large pipes (pipe(7)): the program has to wait more often
        self._drop()

    def _is_muted(self) -> bool:
        if self._unmute_at and time.monotonic() >= self._unmute_at:
            self._unmute_at = 0.0
            self._log_dropped()
        return bool(self._unmute_at)

    def _drop(self) -> None:
        """Drop what has been read, but for the last lines and the number of all."""
        whole, end, rest = self._data[self._position :].rpartition(b"\n")
        if len(rest) > MAX_LOG_LINE:
            whole, end, rest = whole + end + rest, b"\n", b""
        if end:
            self._dropped += whole.count(b"\n") + 1
            self._keep_last(whole)
        self._data, self._position = rest, 0

    def _keep_last(self, data: bytes) -> None:
        lines = data[-LINES_KEPT * MAX_LOG_LINE :].rstrip().split(b"\n")[-LINES_KEPT:]
        texts = [line[-MAX_LOG_LINE:].decode("utf-8", "backslashreplace").rstrip() for line in lines]
        self.last_lines.extend(text for text in texts if text)

    def _log_dropped(self) -> None:
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            lines = "1 line" if dropped == 1 else f"{dropped} lines"
            self._log(f"{lines} dropped: more than stderr_rate allows")


def _nothing(line: str) -> None:
    """Stand in for a `log` that is not called any more."""
