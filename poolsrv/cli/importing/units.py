"""The syntax of systemd's unit files (systemd.syntax(7)): sections, lists, continuation lines, drop-ins."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from .lines import Line
from .service import BadSource, Place

SYSTEM = tuple(Path(folder) for folder in ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system"))
_UNITS = {
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("us", "usec"), 1e-6),
    **dict.fromkeys(("ms", "msec"), 1e-3),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604800.0),
}
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Unit:
    """A unit's settings. Each has a list of values: an empty assignment clears what came before.

    :ivar source: the lines that are no comments.
    """

    def __init__(self) -> None:
        self._settings: dict[str, dict[str, tuple[list[str], Place]]] = {}
        self._asked: set[tuple[str, str]] = set()
        self.source: list[str] = []

    def parse(self, lines: Iterable[Line]) -> None:
        """Take the settings of a file, over those that are there.

        :raises BadSource: a line is neither a section nor a setting.
        """
        section = ""
        for line in _joined(lines):
            text = line.text.strip()
            self.source.append(text)
            if match := re.fullmatch(r"\[([^\[\]]+)\]", text):
                section = match[1]
                continue
            name, equals, value = text.partition("=")
            if not equals or not section:
                expected = "expected NAME=VALUE" if section else "expected a section, such as [Socket], before it"
                raise line.place.mistake(f'"{text[:60]}", {expected}')
            values, _ = self._settings.setdefault(section, {}).setdefault(name.strip(), ([], line.place))
            if value.strip():
                values.append(value.strip())
            else:
                values.clear()

    def has(self, section: str) -> bool:
        """Whether there is such a section."""
        return section in self._settings

    def all(self, section: str, name: str) -> list[str]:
        """The values of a setting."""
        self._asked.add((section, name))
        return list(self._settings.get(section, {}).get(name, ((), None))[0])

    def text(self, section: str, name: str, default: str = "") -> str:
        """The last value of a setting."""
        values = self.all(section, name)
        return values[-1] if values else default

    def place(self, section: str, name: str) -> Place:
        """Where a setting that is there stands first."""
        return self._settings[section][name][1]

    def yes(self, section: str, name: str, default: bool = False) -> bool:
        """A boolean.

        :raises BadSource: it is none.
        """
        value = self.text(section, name).lower()
        if value in ("1", "yes", "y", "true", "t", "on"):
            return True
        if value in ("0", "no", "n", "false", "f", "off", ""):
            return default if not value else False
        raise self.place(section, name).mistake(f'{name}= is "{value}", expected yes or no')

    def number(self, section: str, name: str, of: Callable[[str], float]) -> float | None:
        """A number, time or size; None if it is not there, or infinity.

        :raises BadSource: it is none.
        """
        value = self.text(section, name)
        if value in ("", "infinity"):
            return None
        try:
            return of(value)
        except ValueError:
            raise self.place(section, name).mistake(f'{name}= is "{value}", expected a number') from None

    def left(self, section: str) -> list[tuple[str, str]]:
        """What has not been asked for: pairs of name and value."""
        settings = self._settings.get(section, {})
        return [
            (name, " ".join(values)) for name, (values, _) in settings.items()
            if (section, name) not in self._asked and values
        ]  # fmt: skip


def seconds(text: str) -> float:
    """Read a time span (systemd.time(7)): ``5min 20s``.

    :raises ValueError: it is none.
    """
    if not re.fullmatch(r"(\s*\d+(\.\d+)?\s*[a-z]*)+\s*", text):
        raise ValueError(text)
    try:
        return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)\s*([a-z]*)", text))
    except KeyError:
        raise ValueError(text) from None


def size(text: str) -> float:
    """Read a number of bytes: ``64M``; of ``soft:hard`` the first.

    :raises ValueError: it is none.
    """
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)", text.partition(":")[0])
    if match is None:
        raise ValueError(text)
    return int(match[1]) * _SIZES[match[2]]


def find(path: Path, name: str, read: Callable[[Path], list[Line]]) -> Unit | None:
    """A unit with its drop-ins: beside ``path`` first, then where systemd looks.

    :returns: None if there is no such unit.
    :raises BadSource: it can't be read.
    """
    for folder in (path.parent, *SYSTEM):
        if (folder / name).is_file():
            return load(folder / name, read)
    return None


def load(path: Path, read: Callable[[Path], list[Line]], lines: list[Line] | None = None) -> Unit:
    """A unit of this file, with the drop-ins beside it and in systemd's folders (``NAME.d/*.conf``).

    :raises BadSource: it can't be read.
    """
    unit = Unit()
    drop_ins: dict[str, Path] = {}
    for folder in (*reversed(SYSTEM), path.parent) if path.parent in SYSTEM else (path.parent,):
        try:
            drop_ins.update({file.name: file for file in (folder / f"{path.name}.d").glob("*.conf")})
        except OSError:
            continue
    try:
        unit.parse(read(path) if lines is None else lines)
        for name in sorted(drop_ins):
            unit.parse(read(drop_ins[name]))
    except OSError as error:
        raise BadSource(f"{error.filename}: {error.strerror}") from None
    return unit


def _joined(lines: Iterable[Line]) -> Iterable[Line]:
    begun: Line | None = None
    for line in lines:
        if not line.is_significant:
            continue  # a comment does not end a continuation
        whole = Line(f"{begun.text} {line.text.strip()}", begun.place) if begun is not None else line
        if whole.text.endswith("\\"):
            begun = Line(whole.text[:-1].rstrip(), whole.place)
        else:
            begun = None
            yield whole
    if begun is not None:
        yield begun
