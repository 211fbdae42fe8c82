"""docs/configuration.md has every key with its default."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from poolsrv.config.describe import to_toml
from poolsrv.config.model import (
    LISTENER_KEYS,
    LimitsConfig,
    ListenerConfig,
    LogConfig,
    PoolTable,
    TlsTable,
)


@pytest.mark.parametrize(
    ("schema", "section"),
    [
        (PoolTable, "[pool]"),
        (LimitsConfig, "[limits]"),
        (LogConfig, "[log]"),
        (TlsTable, "[listeners.NAME.tls]"),
        (ListenerConfig, "[listeners.NAME]"),
    ],
)
def test_the_reference_has_every_key_with_its_default(schema: type[msgspec.Struct], section: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    body = text.split(f"## `{section}`\n")[1].split("\n## ")[0].split("\n### ")[0]
    documented = {}
    for row in re.findall(r"^\| `(\w+)` \| .* \| (.*?) \| [^|]*\|$", body, re.MULTILINE):
        documented[row[0]] = row[1]
    in_words = {"bind": "required", "handler": "required", "workers": "all", "half_close": "the handler's"}
    in_words |= dict.fromkeys(("user", "umask", "chdir", "open_files", "core_size"), "as it was started")
    in_words |= {
        "no_new_privs": "`true` with `user`, here or in a `cgi` table",
        "group": "the user's",
        "alpn": "`[]`",
        "sni": "`[]`",
    }
    in_words |= {
        "socket_mode": "as the umask has it",
        "plugins": "`[]`",
        "allow": "`[]`",
        "deny": "`[]`",
        "trusted_proxies": "`[]`",
        "pidfile": "none",
        "tls": "none",
        "certificate": "required",
    }
    in_words |= {"key": "in `certificate`", "client_ca": "none", "client_certificate": "required"}
    in_words |= {"file": "standard error", "control": "none"}
    expected = {}
    for field in msgspec.structs.fields(schema):
        if schema is ListenerConfig and field.name not in LISTENER_KEYS:
            continue
        has_default = field.default is not msgspec.NODEFAULT and field.default is not None
        expected[field.name] = f"`{to_toml(field.default)}`" if has_default else in_words[field.name]
    assert documented == expected
