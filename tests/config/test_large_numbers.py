"""Whole numbers beyond 64 bits are mistakes like others, at every key: nothing later could use them."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolsrv.config.errors import ConfigErrors
from poolsrv.config.toml_file import TOO_MANY_DIGITS
from poolsrv.plugins import loader

LISTENER = '[listeners.a]\nbind = "127.0.0.1:0"\nhandler = "cgi"\n'
TEXTS = (
    "[pool]\nworkers = {}\n" + LISTENER,
    "[pool]\ngraceful_timeout = {}\n" + LISTENER,
    "[pool]\numask = {}\n" + LISTENER,
    "[pool]\nchdir = {}\n" + LISTENER,
    "[limits]\nopen_files = {}\n" + LISTENER,
    LISTENER + "max_connections = {}\n",
    LISTENER + "bind = [{}]\n",
    LISTENER + '[listeners.a.cgi]\nroot = "/bin"\nmax_programs = {}\n',
    LISTENER + '[listeners.a.cgi]\nroot = "/bin"\nlimits = {{ processes = {} }}\n',
    LISTENER + '[listeners.a.cgi]\nroot = "/bin"\nenvironment = {{ A = {} }}\n',
    LISTENER + '[listeners.a.cgi]\nroot = "/bin"\nsandbox = {{ connect = [{}] }}\n',
    LISTENER + '[listeners.a.cgi]\nroot = "/bin"\nsandbox = {{ write = [], private_tmp = {} }}\n',
    "listeners = {}\n",
    "pool = {}\n" + LISTENER,
)


def messages(folder: Path, text: str) -> str:
    file = folder / "poolsrv.toml"
    file.write_text(text)
    with pytest.raises(ConfigErrors) as found:
        loader.load(file)
    return str(found.value)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.replace(LISTENER, "").replace("\n", " ").strip())
@pytest.mark.parametrize(("number", "shown"), [(f"{1 << 63}", "9223372036854775808"), ("0x1" + "0" * 5000, "E+6020")])
def test_a_number_beyond_64_bits(number: str, shown: str, text: str, tmp_path: Path) -> None:
    text = text.replace('bind = "127.0.0.1:0"\n', "") if "bind = [" in text else text
    found = messages(tmp_path, text.format(number))
    assert shown.lower() in found.lower() or "private_tmp" in found
    assert "expected" in found


def test_the_largest_number_is_one(tmp_path: Path) -> None:
    assert "max_connections" not in messages(tmp_path, LISTENER + f"max_connections = {(1 << 63) - 1}\n")


def test_more_digits_than_python_takes(tmp_path: Path) -> None:
    assert messages(tmp_path, LISTENER + f"max_connections = {'9' * 5000}\n").endswith(TOO_MANY_DIGITS)


@pytest.mark.parametrize("key", ["user", "group"])
def test_a_name_with_a_nul(key: str, tmp_path: Path) -> None:
    found = messages(tmp_path, f'[pool]\n{key} = "a\\u0000b"\n{LISTENER}')
    assert f'pool.{key}: no {key} "a\\u0000b" on this machine' in found
