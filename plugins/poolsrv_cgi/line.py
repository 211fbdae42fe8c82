"""The "line" protocol: one line names a program and its arguments, all that follows is the program's output.

    PROGRAM[ ARGS...] CRLF          (LF alone is accepted)

There is no quoting: words are separated by spaces and tabs. Arguments are taken only where the config allows them. The
refusal that a client sees says that it is one and nothing about the file system; the log gets the reason.
"""

from __future__ import annotations

import os

import msgspec

from .scripts import NoScript, Script, ScriptPaths, resolve_line

__all__ = ["find_script_of_line", "refusal"]


def find_script_of_line(paths: ScriptPaths, line: bytes, *, arguments: bool) -> Script | NoScript:
    """The program that `line` names, its arguments in `argv`.

    :param line: what the client sent, with or without its line end.
    :param arguments: whether the client may give arguments.
    """
    if line.endswith(b"\n"):
        line = line[:-1].removesuffix(b"\r")
    if b"\r" in line or b"\n" in line or b"\0" in line:
        return NoScript(400, "a CR, LF or NUL in the line")
    words = line.replace(b"\t", b" ").split(b" ")
    words = [word for word in words if word]
    if not words:
        return NoScript(400, "an empty line")
    if len(words) > 1 and not arguments:
        return NoScript(403, "arguments, which this listener does not take")
    program = resolve_line(paths, words[0])
    if isinstance(program, NoScript) or len(words) == 1:
        return program
    more = (os.fsdecode(word) for word in words[1:])
    return msgspec.structs.replace(program, argv=(*program.argv, *more))


def refusal(answer: NoScript) -> bytes:
    """The one line that a client gets instead of a program's output."""
    if answer.status == 400:
        return b"refused: not a valid request\r\n"
    if answer.reason.startswith("arguments"):
        return b"refused: arguments are not allowed\r\n"
    return b"refused: no such program\r\n"
