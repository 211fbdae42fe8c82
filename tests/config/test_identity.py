"""Users and groups of a config: their numbers are what the kernel takes for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolsrv.config import identity, reader
from poolsrv.config.errors import ConfigErrors

LISTENER = '[listeners.echo]\nbind = "127.0.0.1:0"\nhandler = "echo"\n'


@pytest.mark.parametrize("number", [-1, 2**32 - 1, 2**32, 2**40, 10**20])
def test_a_number_that_is_no_user_s(number: int, tmp_path: Path) -> None:
    """The highest one of 32 bits means "unchanged" to setresuid(2)."""
    for look_up in (identity.user_of, identity.group_of):
        with pytest.raises(ValueError, match=f"got {number}, expected"):
            look_up(number)
    file = tmp_path / "poolsrv.toml"
    for table, key in (("pool", "pool"), ("listeners.echo.cgi", "listeners.echo.cgi")):
        for line in (f"user = {number}\ngroup = 1", f"group = {number}"):
            file.write_text(f"{LISTENER}[{table}]\n{line}\n")
            with pytest.raises(ConfigErrors) as found:
                reader.read(file).finish()
            wrong = line.split(" ")[0]
            if number < 10**20 or table != "pool":  # TOML's own bound comes first
                assert f"{key}.{wrong}: got {number}, expected" in str(found.value)


def test_the_highest_number() -> None:
    assert identity.user_of(2**32 - 2) == (2**32 - 2, None, "")
    assert identity.group_of(2**32 - 2) == 2**32 - 2
