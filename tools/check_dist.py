"""``python -m tools.check_dist FOLDER``: whether the sdist and the two wheels in a folder can be given to users.

The sdist builds the same pure wheel as the source tree. The tools of PyPI accept all of them. Each link of the README
leads to a file of the sdist. In an empty environment, each wheel installs a server that serves, man pages, and
completion, and says whether it is compiled. The compiled one has all that the pure one has.
"""

from __future__ import annotations

import filecmp
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import urllib.request
import venv
from email.parser import BytesParser
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from zipfile import ZipFile

from .compiled import FILES, LIBRARY
from .links import anchors_of

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/poolsrv/poolsrv/blob"
PICTURES = "https://raw.githubusercontent.com/poolsrv/poolsrv"
CONFIG = "[pool]\nworkers = 1\n" + "".join(
    f'[listeners.{name}]\nbind = "127.0.0.1:0"\nhandler = "{handler}"\n'
    for name, handler in (("hello", "echo"), ("look", "status"))
)
TIMEOUT = 60.0  # seconds for the server to start


class NotRight(Exception):
    """What is wrong with a distribution."""


def main() -> None:
    """Check, and exit with 1 and the reason if anything is wrong."""
    folder = Path(sys.argv[1])
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*-py3-none-any.whl")
    (compiled,) = set(folder.glob("*.whl")) - {wheel}
    with tempfile.TemporaryDirectory(prefix="poolsrv-dist-") as name:
        scratch = Path(name)
        try:
            _say("the tools of PyPI")
            _run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, compiled)
            for each, names in ((wheel, packages()), (compiled, [*packages(), LIBRARY + EXTENSION_SUFFIXES[0]])):
                _run(Path(sys.executable).parent / "check-wheel-contents", f"--toplevel={','.join(names)}", each)
            check_compiled(compiled, wheel)
            with tarfile.open(sdist) as archive:
                archive.extractall(scratch, filter="data")
            tree = scratch / sdist.name.removesuffix(".tar.gz")
            _say("the links of the README")
            check_links(description(wheel), tree)
            _say("the wheel of the source tree is that of the sdist")
            _check_same_wheel(wheel, scratch / "again")
            _say("an empty environment")
            _check_installed(wheel, "pure Python", tree, scratch / "environment")
            _say("another one, for the compiled wheel")
            _check_installed(compiled, "compiled", tree, scratch / "compiled")
        except NotRight as error:
            sys.exit(f"{folder}: {error}")
    _say(f"well: {sdist.name}, {wheel.name}, {compiled.name}")


def packages() -> list[str]:
    """The packages that pyproject.toml puts into the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [Path(folder).name for folder in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


def check_compiled(compiled: Path, wheel: Path) -> None:
    """Check that the compiled wheel is the pure one with its modules compiled, and nothing else.

    :raises NotRight: it is not.
    """
    with ZipFile(compiled) as archive, ZipFile(wheel) as pure:
        names, expected = set(archive.namelist()), set(pure.namelist())
        if missing := expected - names:
            raise NotRight(f"{compiled.name} has no {', '.join(sorted(missing))}")
        changed = [name for name in expected if name.endswith(".py") and archive.read(name) != pure.read(name)]
        if changed:
            raise NotRight(f"{compiled.name} has another {', '.join(sorted(changed))} than {wheel.name}")
    more = {name.partition(".")[0] for name in names - expected}
    if more != {LIBRARY, *(file.removesuffix(".py") for file in FILES)}:
        raise NotRight(f"{compiled.name} has these compiled modules: {', '.join(sorted(more))}")


def description(wheel: Path) -> str:
    """The README as PyPI shows it."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return str(BytesParser().parsebytes(archive.read(name)).get_payload())


def check_links(text: str, tree: Path) -> None:
    """Check that each link is absolute, and that what it names of this version exists, with its anchor.

    :raises NotRight: one is not.
    """
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    if not links:
        raise NotRight("the README has no link at all")
    for link in links:
        if link.startswith("#"):
            continue
        if not link.startswith("https://"):
            raise NotRight(f"the link {link} of the README leads nowhere on PyPI")
        if link.startswith((REPOSITORY, PICTURES)):
            file = link.removeprefix(REPOSITORY).removeprefix(PICTURES)
            path, _, anchor = file.lstrip("/").partition("/")[2].partition("#")
            if not (tree / path).exists():
                raise NotRight(f"{link}: the sdist has no {path}")
            if anchor and anchor not in anchors_of((tree / path).read_text(encoding="utf-8")):
                raise NotRight(f"{link}: {path} has no such heading")


def _check_same_wheel(wheel: Path, folder: Path) -> None:
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    if not filecmp.cmp(wheel, folder / wheel.name, shallow=False):
        shutil.copy(folder / wheel.name, wheel.with_suffix(".tree.whl"))
        raise NotRight(
            f"the sdist builds another wheel than the source tree, see {wheel.with_suffix('.tree.whl').name}"
        )


def _check_installed(wheel: Path, kind: str, tree: Path, folder: Path) -> None:
    venv.create(folder, with_pip=True)
    _run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    program = folder / "bin" / "poolsrv"
    version = wheel.name.split("-")[1]
    if (shown := _run(program, "--version")) != f"poolsrv {version}\n{kind}\n":
        raise NotRight(f"poolsrv --version: got {shown!r}")
    _run(program, "check", "--config", tree / "poolsrv.toml")
    _check_server(program, folder)
    for shell, name in {
        "bash": "bash-completion/completions/poolsrv",
        "zsh": "zsh/site-functions/_poolsrv",
        "fish": "fish/vendor_completions.d/poolsrv.fish",
    }.items():
        if (folder / "share" / name).read_text() != _run(program, "completion", shell):
            raise NotRight(f"share/{name} is not what poolsrv completion {shell} prints")
    pages = {page.name for page in (folder / "share" / "man" / "man1").iterdir()}
    commands = re.findall(r"^  ([a-z][a-z-]*)  ", _run(program, "--help").partition("\n\nExit codes")[0], re.MULTILINE)
    if missing := {"poolsrv.1", *(f"poolsrv-{name}.1" for name in commands)} - pages:
        raise NotRight(f"there is no man page {', '.join(sorted(missing))}")


def _check_server(program: Path, folder: Path) -> None:
    """Serve two clients: one of them gets the live page, which is made of files that are no code."""
    config = folder / "poolsrv.toml"
    config.write_text(CONFIG)
    with subprocess.Popen([program, "--config", config], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            log = ""
            for line in server.stderr:
                log += line
                if found := re.search(r"ready: hello on 127\.0\.0\.1:(\d+), look on (127\.0\.0\.1:\d+)", line):
                    break
            else:
                raise NotRight(f"the server has not started:\n{log}")
            with socket.create_connection(("127.0.0.1", int(found[1])), TIMEOUT) as client:
                client.sendall(b"hello\n")
                client.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: client.recv(100), b""))
            if answer != b"hello\n":
                raise NotRight(f"the echo server has answered {answer!r}")
            with urllib.request.urlopen(f"http://{found[2]}/", timeout=TIMEOUT) as page:
                if not page.read().rstrip().endswith(b"</html>"):
                    raise NotRight("the live page is not whole")
            server.send_signal(signal.SIGTERM)
            if code := server.wait(TIMEOUT):
                raise NotRight(f"the server has exited with {code}")
        finally:
            server.kill()


def _run(*argv: str | Path) -> str:
    """Run a program, and return its output.

    :raises NotRight: it has failed.
    """
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode:
        raise NotRight(f"{' '.join(map(str, argv))} has failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def _say(text: str) -> None:
    print(f"dist: {text}", flush=True)


if __name__ == "__main__":
    main()
