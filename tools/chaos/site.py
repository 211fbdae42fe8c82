"""What the server serves: a folder with configs, programs, files, plugins and a certificate."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parent / "site"
GRACE: Final = 12.0  # seconds, graceful_timeout: more than any client of the load takes
MOST_TIGHT: Final = 6  # max_connections of the listener `tight`
MOST_PER_SOURCE: Final = 8  # of the listener `sources`
DENIED: Final = "127.0.0.66"  # may not connect to `sources`
SIZES: Final = {"small.bin": 3000, "page.bin": 40_000, "large.bin": 1_500_000}
SPOOL_MEMORY: Final = 65536

HTTP: Final = """\
handler = "cgi"
plugins = ["chaos_plugins:Journal"]
[listeners.{name}.journal]
path = "{folder}/journal"
[listeners.{name}.cgi]
root = "programs"
prefix = "/run"
files = "files"
interpreters = {{ ".py" = ["{python}"] }}
warm = ["/run/warm.py"]
access_log = "{folder}/access.log"
access_log_format = "json"
spool_memory = {spool}
max_programs = 40
capture = "tmp/captures"
timeout = 25.0
"""


@dataclass(frozen=True)
class Variant:
    """What one config differs in from another.

    :ivar open_files: of each process.
    """

    dispatch: str
    workers: int = 3
    open_files: int = 1024
    recycle: int = 0
    hang_timeout: float = 60.0

    def other(self, pick: float) -> Variant:
        """A good config with the same way of dispatch, chosen by a number from 0 up to 1."""
        chosen = random.Random(pick)
        return replace(
            self,
            workers=chosen.choice((2, 3, 4)),
            open_files=chosen.choice((1024, 1024, 256)),
            recycle=chosen.choice((0, 0, 40)),
        )


class Site:
    """Such a folder.

    :ivar config: the config's file.
    :ivar files: the static files: name to content.
    """

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        self.config = folder / "poolsrv.toml"
        self._python = python
        for name in ("files", "run", "tmp"):
            (folder / name).mkdir(parents=True)
        shutil.copytree(SOURCE / "programs", folder / "programs")
        for plugin in SOURCE.glob("*.py"):
            shutil.copy(plugin, folder)
        content = random.Random(0)
        self.files = {name: content.randbytes(size) for name, size in SIZES.items()}
        for name, data in self.files.items():
            (folder / "files" / name).write_bytes(data)
        self._make_certificate()

    def prepare_temporary_files(self) -> None:
        """Make what belongs into `tmp`, once that is mounted."""
        (self.folder / "tmp" / "captures").mkdir(mode=0o700)

    def _make_certificate(self) -> None:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key.pem"]
        name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        # It is its own authority, which has to say so: Python verifies strictly from 3.13 on.
        name += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
        command = ["openssl", "req", "-x509", *key, *name, "-days", "30", "-out", "certificate.pem"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)

    def write(self, variant: Variant) -> None:
        """Write the config."""
        self._write(self.text(variant))

    def write_broken(self, variant: Variant, pick: float, taken_port: int) -> str:
        """Write a config that can't be taken over.

        :param taken_port: at which another process listens.
        :returns: what is wrong with it.
        """
        text = self.text(variant)
        wrong = [
            ("no TOML", text + "\n[listeners.echo\n"),
            ("an unknown key", text.replace("[pool]\n", "[pool]\nwrokers = 3\n")),
            ("an unknown plugin", text + '[listeners.more]\nbind = "127.0.0.1:0"\nhandler = "no-such-plugin"\n'),
            ("an import that fails", text + _further("broken_import:Never")),
            ("workers that can't start", text + _further("broken_start:Never")),
            ("an address in use", text + _further("echo", f"127.0.0.1:{taken_port}")),
            ("a missing certificate", text.replace('certificate = "certificate.pem"', 'certificate = "none.pem"')),
        ]
        what, broken = wrong[int(pick * len(wrong))]
        self._write(broken)
        return what

    def _write(self, text: str) -> None:
        # At once, as a careful administrator does: the server may read it at any moment.
        temporary = self.config.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(self.config)

    def text(self, variant: Variant) -> str:
        """The config of a variant."""
        limits = variant.dispatch != "kernel"  # which has none over all workers
        tls = '[listeners.{}.tls]\ncertificate = "certificate.pem"\nkey = "key.pem"\n'
        proxy = 'proxy_protocol = true\ntrusted_proxies = ["127.0.0.0/8"]\n'
        line = '[listeners.raw.cgi]\nprotocol = "line"\nroot = "programs"\narguments = true\n'
        inetd = '[listeners.inetd.cgi]\nprotocol = "inetd"\nprogram = ["cat"]\n'
        tight = f'max_connections = {MOST_TIGHT}\nwhen_full = "refuse"\n' if limits else ""
        queue = f"max_connections = {MOST_TIGHT}\n" if limits else ""
        sources = f"max_per_source = {MOST_PER_SOURCE}\n" if limits else ""
        parts = [
            "[pool]",
            f'workers = {variant.workers}\ndispatch = "{variant.dispatch}"\ngraceful_timeout = {GRACE}',
            f'control = "{self.folder}/run/control"\npidfile = "{self.folder}/run/pid"',
            f"max_draining_pools = 50\nruns = 20\nhang_timeout = {variant.hang_timeout}",
            f"recycle_after_connections = {variant.recycle}\nmax_worker_memory = {160 << 20}",
            f'[limits]\nopen_files = {variant.open_files}\n[log]\nformat = "json"\n',
            self._listener("echo", "echo"),
            self._listener("lines", "chaos_plugins:Lines"),
            self._listener("local", "chaos_plugins:Lines", bind=f"unix:{self.folder}/run/local.sock"),
            self._listener("raw", "cgi", "log_connections = true\n", line),
            self._listener("inetd", "cgi", "log_connections = true\n", inetd),
            self._http("www", ""),
            self._http("proxied", proxy),
            self._http("https", "") + tls.format("https"),
            self._listener("tls", "echo", "", tls.format("tls")),
            self._listener("imp", "chaos_plugins:Imp"),
            self._listener("tight", "chaos_plugins:Lines", tight),
            self._listener("queue", "chaos_plugins:Lines", queue),
            self._listener("sources", "chaos_plugins:Lines", f'{sources}deny = ["{DENIED}"]\n'),
            '[listeners.status]\nbind = "127.0.0.1:0"\nhandler = "status"\n',
        ]
        return "\n".join(parts)

    def _listener(self, name: str, handler: str, keys: str = "", tables: str = "", bind: str = "127.0.0.1:0") -> str:
        journal = f'plugins = ["chaos_plugins:Journal"]\n[listeners.{name}.journal]\npath = "{self.folder}/journal"\n'
        return f'[listeners.{name}]\nbind = "{bind}"\nhandler = "{handler}"\n{keys}{journal}{tables}'

    def _http(self, name: str, keys: str) -> str:
        rest = HTTP.format(name=name, folder=self.folder, python=self._python, spool=SPOOL_MEMORY)
        return f'[listeners.{name}]\nbind = "127.0.0.1:0"\n{keys}{rest}'


def _further(handler: str, bind: str = "127.0.0.1:0") -> str:
    return f'\n[listeners.more]\nbind = "{bind}"\nhandler = "{handler}"\n'
