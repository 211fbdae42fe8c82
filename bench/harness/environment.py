"""What the benchmark needs: C programs, a virtual environment, Debian packages."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent
REPO = BENCH.parent
NATIVE = BENCH / "native"  # the C programs
BUILD = BENCH / "build"
RESULTS = BENCH / "results"
VENV = BENCH / ".venv"
PYTHON = VENV / "bin" / "python"
COMPILED_VENV = BENCH / ".venv-compiled"

STATIC = {"cgi_static", "cgi_big"}  # CGI programs: without a dynamic linker, the server's cost is what remains
PROGRAMS = ["load", "echo_min", "classic_pool", "passing_pool", "spawn_loop", "cgi_loop", "cgi_static", "cgi_big"]

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
    """Something is missing without which nothing can be measured."""


def say(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def which(program: str) -> str | None:
    """The program's path, or None; also looks where web servers are, which a user's PATH often leaves out."""
    return shutil.which(program, path=SEARCH_PATH)


def compile_programs() -> None:
    """Compile each C program whose source is newer than its binary."""
    BUILD.mkdir(exist_ok=True)
    for name in PROGRAMS:
        source, target = NATIVE / f"{name}.c", BUILD / name
        if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
            continue
        compiler = which("cc")
        if compiler is None:
            raise SetupError("a C compiler is needed, and cc is not installed (Debian: apt-get install gcc libc6-dev)")
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
    """Run pip; returns the last lines of its error output, or an empty string if it succeeded."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    return "\n".join(done.stderr.strip().splitlines()[-3:]) if done.returncode else ""


def make_venv() -> None:
    """bench/.venv with poolsrv (this checkout, as a user would install it), the do-nothing plugins and the peers.

    What can't be installed is reported, and only the peers that need it are missing.
    """
    plugin = BENCH / "plugins" / "noop"
    parts = {  # stamp -> (files whose change makes it stale, what to install)
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
        if name == "noop":  # else pip would take the cached wheel of the same version
            arguments = ["--no-cache-dir", *arguments]
        if complaint := _pip(*arguments):
            say(f"  not installed, the peers that need it will be missing: {complaint}")
        else:
            stamp.write_text(wanted)


def make_compiled_venv() -> None:
    """bench/.venv-compiled with the compiled wheel of this checkout. What can't be made is reported."""
    sources = sorted(file for folder in ("poolsrv", "plugins") for file in (REPO / folder).rglob("*.py"))
    stamp = COMPILED_VENV / "poolsrv.stamp"
    wanted = _fingerprint(REPO / "pyproject.toml", REPO / "tools" / "compiled.py", *sources)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    say("making bench/.venv-compiled, which takes a minute or two")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(COMPILED_VENV)], check=True)
    command = [str(COMPILED_VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "."]
    environment = {**os.environ, "POOLSRV_COMPILE": "1"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(COMPILED_VENV)
        say(f"  not made, the compiled peers will be missing: {done.stderr.strip().splitlines()[-1:]}")
    else:
        stamp.write_text(wanted)


def has_module(name: str) -> bool:
    """Whether bench/.venv has this module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([str(PYTHON), "-c", code], check=False).returncode == 0


def install_packages(programs: set[str]) -> None:
    """As root on Debian, install the packages of missing programs; elsewhere report what is missing."""
    missing = sorted(program for program in programs if which(program) is None)
    if not missing:
        return
    packages = [PACKAGES[program] for program in missing]
    apt = which("apt-get")
    if os.geteuid() != 0 or apt is None:
        advice = f"Debian: apt-get install {' '.join(packages)}"
        say(f"missing: {', '.join(missing)}; the peers that need them are left out ({advice})")
        return
    say(f"apt-get install {' '.join(packages)}")
    # Packages of web servers would start them on port 80; the last two variables prevent that.
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_OFFLINE": "1", "RUNLEVEL": "1"}
    for package in packages:
        subprocess.run(
            [apt, "install", "-y", "-qq", "--no-install-recommends", package],
            env={**os.environ, **quiet},
            stdout=subprocess.DEVNULL,
            check=False,
        )
