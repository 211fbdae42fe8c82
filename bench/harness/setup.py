"""What has to be there before anything can be measured: C programs, a virtual environment, Debian packages."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent
REPO = BENCH.parent
BUILD = BENCH / "build"
VENV = BENCH / ".venv"
PYTHON = VENV / "bin" / "python"

STATIC = {"cgi_static", "cgi_big"}  # CGI programs: without a dynamic linker, what is left is the server's cost
PROGRAMS = ["load", "echo_min", "classic_pool", "passing_pool", "spawn_loop", "cgi_static", "cgi_big"]

# program -> Debian package
PACKAGES = {
    "wrk": "wrk",
    "tcpserver": "ucspi-tcp",
    "socat": "socat",
    "lighttpd": "lighttpd",
    "apache2": "apache2-bin",
    "nginx": "nginx",
    "fcgiwrap": "fcgiwrap",
    "openssl": "openssl",
}
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class SetupError(Exception):
    """Something without which nothing can be measured."""


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def which(program: str) -> str | None:
    """The program's path; web servers are often in directories that are not in a user's PATH."""
    return shutil.which(program, path=SEARCH_PATH)


def compile_programs() -> None:
    """Compile what is newer than its binary."""
    BUILD.mkdir(exist_ok=True)
    for name in PROGRAMS:
        source, target = BENCH / f"{name}.c", BUILD / name
        if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
            continue
        compiler = which("cc")
        if compiler is None:
            raise SetupError("a C compiler is needed: cc is not there (Debian: apt-get install gcc libc6-dev)")
        flags = ["-static"] if name in STATIC else []
        command = [compiler, "-O2", "-std=c11", *flags, "-o", str(target), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SetupError(f"{name}.c does not compile:\n{done.stderr}")


def _fingerprint(*paths: Path) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _pip(*arguments: str) -> str:
    """Run pip; the last lines of its complaint, or nothing where it went well."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    return "\n".join(done.stderr.strip().splitlines()[-3:]) if done.returncode else ""


def make_venv() -> None:
    """bench/.venv with poolsrv (this checkout, as a user would install it), the do-nothing plugins and the peers.

    What can't be installed is said, and its peers are then missing; nothing else is.
    """
    plugin = BENCH / "noop_plugin"
    parts = {  # stamp -> (files that decide whether it must be done again, what to install)
        "poolsrv": ([REPO / "pyproject.toml"], ["-e", "."]),
        "noop": (sorted(plugin.glob("*.*")), ["--no-deps", "--force-reinstall", str(plugin.relative_to(REPO))]),
        "peers": ([BENCH / "requirements.txt"], ["-r", str((BENCH / "requirements.txt").relative_to(REPO))]),
    }
    if not PYTHON.exists():
        say("making bench/.venv")
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    for name, (files, arguments) in parts.items():
        stamp, wanted = VENV / f"{name}.stamp", _fingerprint(*files)
        if stamp.exists() and stamp.read_text() == wanted:
            continue
        say(f"installing into bench/.venv: {' '.join(arguments)}")
        if name == "noop":  # hatchling gives an installed package of the same version no second look otherwise
            arguments = ["--no-cache-dir", *arguments]
        if complaint := _pip(*arguments):
            say(f"  not installed, its peers will be missing: {complaint}")
        else:
            stamp.write_text(wanted)


def has_module(name: str) -> bool:
    """Whether bench/.venv has it."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([str(PYTHON), "-c", code], check=False).returncode == 0


def install_packages(programs: set[str]) -> None:
    """Install the Debian packages of missing programs, as root on Debian; else say what is missing."""
    missing = sorted(program for program in programs if which(program) is None)
    if not missing:
        return
    packages = [PACKAGES[program] for program in missing]
    apt = which("apt-get")
    if os.geteuid() != 0 or apt is None:
        say(f"missing: {', '.join(missing)}; their peers are left out (Debian: apt-get install {' '.join(packages)})")
        return
    say(f"apt-get install {' '.join(packages)}")
    # The packages of web servers would start them on port 80; these two variables keep that from happening.
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_OFFLINE": "1", "RUNLEVEL": "1"}
    for package in packages:
        subprocess.run(
            [apt, "install", "-y", "-qq", "--no-install-recommends", package],
            env={**os.environ, **quiet},
            stdout=subprocess.DEVNULL,
            check=False,
        )
