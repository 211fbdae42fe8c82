"""Certificates for tests: authorities, servers, clients."""

from __future__ import annotations

import subprocess
from pathlib import Path

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Certificates:
    """Made by openssl, in a folder: each has NAME.pem and NAME.key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ca", "otherca"):
            files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
            # Python verifies strictly from 3.13 on: an authority has to say that it signs certificates.
            extension = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
            self._run("req", "-x509", *NEW_KEY, "-days", "30", "-subj", f"/CN={name}", *extension, *files)
        (folder / "index.txt").write_text("")
        (folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca = d\n[d]\ndatabase = index.txt\nserial = serial\nnew_certs_dir = .\nunique_subject = no\n"
            "default_md = sha256\npolicy = p\ncopy_extensions = copy\n"
            "[p]\norganizationName = optional\ncommonName = supplied\n"
        )
        self.make("server", "localhost")
        self.make("one", "one.example")
        self.make("wild", "*.wild.example")
        self.make("alice", "alice", organisation="Example, Inc.")
        self.make("mallory", "mallory", authority="otherca")
        self.make("late", "late", end="20200102000000Z")

    def make(
        self, name: str, host: str, authority: str = "ca", end: str = "20491231000000Z", organisation: str = ""
    ) -> None:
        subject = f"/O={organisation}/CN={host}" if organisation else f"/CN={host}"
        names = ["-addext", f"subjectAltName=DNS:{host}"]
        self._run("req", *NEW_KEY, "-subj", subject, *names, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signs = ["-cert", f"{authority}.pem", "-keyfile", f"{authority}.key", "-config", "ca.cnf", "-create_serial"]
        period = ["-startdate", "20200101000000Z", "-enddate", end]
        self._run("ca", "-batch", "-notext", *signs, *period, "-in", f"{name}.csr", "-out", f"{name}.pem")

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
