"""Syntax errors, and what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolsrv.config.errors import ConfigErrors
from poolsrv.config.reader import read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = 1\nb = ", "line 2, column 5: Invalid value"),
        (b"a = 1\n\nb == 1", "line 3, column 4: Invalid value"),
        (b"[pool\n", "line 1, column 6: Expected ']' at the end of a table declaration"),
        (b"a = [1,\n 2", "line 2, column 3: Unclosed array"),
        (b"[listeners.a]\n[listeners.a]\n", "line 2, column 13: Cannot declare listeners.a twice"),
        (b"# \xc3\xa9\nb = \xff", "line 2, column 5: not UTF-8, expected TOML, which is always in UTF-8"),
    ],
)
def test_a_syntax_error_has_its_line_and_column(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigErrors) as error:
        read(path)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bind = 127.0.0.1:7007", 'line 1, column 13: text without quotes, expected bind = "127.0.0.1:7007"'),
        ("bind = 127.0.0.1:7007  # here", 'line 1, column 13: text without quotes, expected bind = "127.0.0.1:7007"'),
        ("bind = :8080", 'line 1, column 8: text without quotes, expected bind = ":8080"'),
        ("bind = [::1]:80", 'line 1, column 9: text without quotes, expected bind = "[::1]:80"'),
        ('bind = ["a", :80]', 'line 1, column 14: text without quotes, expected bind = ["a", ":80"]'),
        ("bind = [\n  127.0.0.1:80,\n]", 'line 2, column 8: text without quotes, expected "127.0.0.1:80"'),
        ("[a]\nb.root = /srv", 'line 2, column 10: text without quotes, expected b.root = "/srv"'),
        ("user = www-data", 'line 1, column 8: text without quotes, expected user = "www-data"'),
        ("a = yes", "line 1, column 5: yes is no value, expected a = true"),
        ("umask = 027", "line 1, column 10: a number with a zero in front, expected umask = 0o27"),
        (
            "a = 30s",
            "line 1, column 7: a number with a unit (times are in seconds, sizes in bytes), expected a = 30",
        ),
        ("workers: 4", "line 1, column 8: a colon after the key, expected workers = 4"),
        ("a = \u201cecho\u201d", 'line 1, column 5: typographic quotation marks, expected straight ones: "echo"'),
        ("a\u00a0= 1", "line 1, column 2: U+00A0 (no-break space), expected TOML: `key = value`, or a [table]"),
        ("a = 1\n\ufeffb = 2", "line 2, column 1: a byte order mark (U+FEFF), expected none, or one at the start"),
        ("a = b = c", "line 1, column 5: Invalid value"),
        ('"\\u0085\x0f" = 1x', r"line 1, column 8: Illegal character '\x0f'"),
        ("a = [x\x9b]", "line 1, column 6: Invalid value"),
        ("a = \u201c\x9b\u201d", "line 1, column 5: U+201C (left double quotation mark), expected TOML"),
        ('"\u202e" : 1', "line 1, column 5: Expected '=' after a key in a key/value pair"),
        ('"\t" = yes', r'line 1, column 7: yes is no value, expected "\t" = true'),
        ('"\x9b" = 1\n"\x9b" = 2', r'line 2, column 1: the key `"\u009b"` is there twice (first in line 1)'),
        ('a = {"\x9b" = 1, "\x9b" = 2}', r"line 1, column 22: the key `\x9b` is there twice, expected it once"),
        ("a = " + "[" * 5000, "can't be read: it is nested too deeply"),
    ],
)
def test_a_common_syntax_error_names_what_was_probably_meant(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigErrors) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: {message}")


_TWICE = "is there twice (first in line {}), expected it once"
_BOTH = "is there twice, as a value (first in line {}) and as a table, expected one of the two"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[pool]\nworkers = 1\n\n  workers = 2 # two\nx = "',
            f"line 4, column 3: the key `pool.workers` {_TWICE.format(2)}",
        ),
        ("a = 1\na = 1", f"line 2, column 1: the key `a` {_TWICE.format(1)}"),
        ('x = "a"\na = [\n 1,\n]\nb = 2\na = [\n  2,\n]', f"line 6, column 1: the key `a` {_TWICE.format(2)}"),
        ('[a]\n"b=c".d = 1\n[b]\nd = 1\n\'b=c\'.d = 1\n"d" = 2', f"line 6, column 1: the key `b.d` {_TWICE.format(4)}"),
        ("[[a]]\nb = 1\n[[a]]\nb = 2\nb = {c = 3}", f"line 5, column 1: the key `a.b` {_TWICE.format(4)}"),
        ("a = 1\n[a]\nb = 1", f"line 2, column 1: `a` {_BOTH.format(1)}"),
        ("a = 1\n[a.b]\nb = 1", f"line 2, column 1: `a` {_BOTH.format(1)}"),
        ("a = 1\n[[a]]\nb = 1", f"line 2, column 1: `a` {_BOTH.format(1)}"),
        ("[x]\na = 1\na.b = 2", f"line 3, column 1: `x.a` {_BOTH.format(2)}"),
        ("a = {b = 1, b = 2}", "line 1, column 18: the key `b` is there twice, expected it once"),
        ("a = 1\r\nb = 2\r\na = 3\r\n", f"line 3, column 1: the key `a` {_TWICE.format(1)}"),
    ],
)
def test_a_key_that_is_there_twice_is_named(text: str, message: str, tmp_path: Path) -> None:
    """TOML 1.0, "Keys": defining a key multiple times is invalid."""
    path = tmp_path / "a.toml"
    path.write_bytes(text.encode())
    assert errors_of(path) == [message]


def test_a_byte_order_mark_at_the_start_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b'\xef\xbb\xbf[listeners.a]\r\nbind = ":1"\r\nhandler = "echo"\r\n')
    assert read(path).finish().listeners[0].handler == "echo"
    path.write_bytes(b"\xef\xbb\xbfa = 1\nb = \xff")
    assert errors_of(path) == ["line 2, column 5: not UTF-8, expected TOML, which is always in UTF-8"]
    path.write_bytes("a = 1".encode("utf-16"))
    assert errors_of(path) == ["line 1, column 1: in UTF-16, expected TOML, which is always in UTF-8"]


def errors_of(path: Path) -> list[str]:
    with pytest.raises(ConfigErrors) as error:
        read(path)
    return [line.removeprefix(f"{path}: ") for line in str(error.value).splitlines()]


def test_the_message_says_why_a_file_can_not_be_read(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path / "nothere.toml", "no such file, expected a config file"),
        (tmp_path, "a directory, expected a config file"),
        (Path("/proc/self/mem"), "can't be read: Input/output error"),
        (tmp_path / "a\0b", "can't be read: embedded null byte"),
    ]:
        with pytest.raises(ConfigErrors) as error:
            read(path)
        assert str(error.value) == f"{path}: {message}"
