"""From a URL path, or a line, to a program: prefix, index, suffixes, aliases, patterns, and the file system."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from poolsrv_cgi.line_server import find_script_of_line, refusal
from poolsrv_cgi.scripts import NoScript, Script, ScriptPaths, decode_path, find_script


def add(file: Path, mode: int = 0o755) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/bin/sh\n")
    file.chmod(mode)
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in ("run.sh", "sub/run.cgi", "sub/index.cgi", "nph-raw.sh", "sub/nph-raw.sh"):
        add(root / name)
    add(root / "plain.py", 0o644)
    add(root / "notes", 0o644)
    (root / "empty").mkdir()
    add(tmp_path / "secret.sh")
    (root / "out.sh").symlink_to("../secret.sh")
    (root / "outdir").symlink_to("..")
    return root


def found(root: Path, url: str, **options: Any) -> Script:
    program = find_script(ScriptPaths(root=root, **options), url)
    assert isinstance(program, Script), program
    return program


def status(root: Path, url: str, **options: Any) -> int:
    answer = find_script(ScriptPaths(root=root, **options), url)
    assert isinstance(answer, NoScript), answer
    assert answer.reason.isprintable()
    return answer.status


def test_programs_below_several_prefixes(root: Path) -> None:
    """Each has a directory of its own, and the longest prefix that fits counts. Nothing leads from one to another."""
    paths = ScriptPaths(root=None, roots={"/cgi-bin": root, "/cgi-bin/inner/": root / "sub", "/htbin": root / "none"})

    def answer(url: str) -> tuple[str, str, str] | int:
        script = find_script(paths, url)
        return script.status if isinstance(script, NoScript) else (script.filename, script.script_name, script.root)

    sub = root / "sub"
    assert answer("/cgi-bin/run.sh") == (f"{root}/run.sh", "/cgi-bin/run.sh", str(root))
    assert answer("/cgi-bin/inner/run.cgi/x") == (f"{sub}/run.cgi", "/cgi-bin/inner/run.cgi", str(sub))
    assert answer("/cgi-bin/inner/run.sh") == 404
    assert answer("/cgi-bin/inner/../run.sh") == (f"{root}/run.sh", "/cgi-bin/run.sh", str(root))
    assert [answer(url) for url in ("/cgi-bin", "/cgi-bin/", "/cgi-bin/notes")] == [403, 403, 403]
    assert [answer(url) for url in ("/", "/run.sh", "/cgi-binary/run.sh", "/htbin/run.sh")] == [404, 404, 404, 404]


def test_program(root: Path) -> None:
    """RFC 3875 sections 4.1.5, 4.1.13 and 7.2: name, rest and working directory."""
    program = found(root, "/sub/run.cgi/more/")
    assert program.argv == (str(root / "sub/run.cgi"),)
    assert program.filename == str(root / "sub/run.cgi")
    assert program.directory == str(root / "sub")
    assert (program.script_name, program.path_info) == ("/sub/run.cgi", "/more/")
    assert found(root, "/run.sh").path_info == ""
    assert found(root, "/run.sh/").path_info == "/"


def test_prefix(root: Path) -> None:
    """RFC 3875 section 4.1.13: SCRIPT_NAME is the whole URL path of the program, by whole segments."""
    for prefix in ("/cgi-bin/", "/cgi-bin"):
        assert found(root, "/cgi-bin/run.sh/x", prefix=prefix).script_name == "/cgi-bin/run.sh"
        assert status(root, "/run.sh", prefix=prefix) == 404
        assert status(root, "/cgi-binrun.sh", prefix=prefix) == 404
        assert status(root, "/cgi-bin", prefix=prefix) == 403
        assert status(root, "/cgi-bin/../run.sh", prefix=prefix) == 404


def test_index(root: Path) -> None:
    """RFC 9110 section 15.4.2: a directory is redirected to its own name with a slash, then its index answers."""
    program = found(root, "/sub/", index="index.cgi")
    assert (program.script_name, program.path_info) == ("/sub/index.cgi", "")
    answer = find_script(ScriptPaths(root=root, index="index.cgi"), "/sub")
    assert answer == NoScript(301, "a directory without its slash", "/sub/")
    assert status(root, "/empty/", index="index.cgi") == 404
    assert status(root, "/", index="index.cgi") == 404
    assert status(root, "/outdir/", index="secret.sh") == 403
    assert status(root, "/", index="out.sh") == 403
    with_prefix = find_script(ScriptPaths(root=root / "sub", prefix="/a/", index="index.cgi"), "/a")
    assert isinstance(with_prefix, NoScript)
    assert with_prefix.location == "/a/"


def test_redirect_leads_to_this_server(root: Path) -> None:
    """RFC 3986 section 4.2: two slashes in front would name another host."""
    add(root / "evil.example" / "index.cgi")
    answer = find_script(ScriptPaths(root=root, index="index.cgi"), "//evil.example")
    assert isinstance(answer, NoScript)
    assert answer.location == "/evil.example/"
    add(root / "a b%" / "index.cgi")
    answer = find_script(ScriptPaths(root=root, index="index.cgi"), "/a%20b%25")
    assert isinstance(answer, NoScript)
    assert answer.location == "/a%20b%25/"


def test_suffixes(root: Path) -> None:
    """RFC 3875 section 9.5 (source code): what is not to run is not shown either."""
    assert status(root, "/run.sh", extensions=[".cgi"]) == 403
    assert found(root, "/sub/run.cgi", extensions=[".cgi"])
    assert status(root, "/notes") == 403
    assert status(root, "/plain.py") == 403
    program = found(root, "/plain.py/x", interpreters={".py": ["python3", "-I"]})
    assert program.argv == ("python3", "-I", str(root / "plain.py"))
    assert program.path_info == "/x"
    assert status(root, "/plain.py", interpreters={".py": ["python3"]}, extensions=[".cgi"]) == 403


def test_aliases(root: Path, tmp_path: Path) -> None:
    """RFC 3875 section 4.1.13: which URL paths name a program is the server's to decide."""
    aliases = {"/git": tmp_path / "secret.sh", "/git/deep/": root / "notes", "/run.sh": root / "sub/run.cgi"}
    program = found(root, "/git/repo.git/info/refs", aliases=aliases)
    assert program.filename == str(tmp_path / "secret.sh")
    assert (program.script_name, program.path_info) == ("/git", "/repo.git/info/refs")
    assert found(root, "/git", aliases=aliases).path_info == ""
    assert found(root, "/git/", aliases=aliases, extensions=[".none"]).path_info == "/"
    assert status(root, "/gitx", aliases=aliases) == 404
    assert status(root, "/git/deep/x", aliases=aliases) == 403
    assert found(root, "/run.sh", aliases=aliases).filename.endswith("run.cgi")
    assert found(root, "/any/thing", aliases={"/": tmp_path / "secret.sh"}).path_info == "/any/thing"
    assert found(root, "/any/thing", aliases={"/": tmp_path / "secret.sh"}).script_name == ""
    assert status(root, "/gone", aliases={"/gone": tmp_path / "gone"}) == 404
    assert status(root, "/dir", aliases={"/dir": root}) == 403


def test_patterns(root: Path) -> None:
    """RFC 3875 section 5: a program writes the response itself only where the config says so."""
    assert not found(root, "/nph-raw.sh").nph
    assert found(root, "/nph-raw.sh", nph=["/nph-*"]).nph
    assert not found(root, "/sub/nph-raw.sh", nph=["/nph-*"]).nph
    assert found(root, "/sub/nph-raw.sh", nph=["*/nph-*"]).nph
    assert not found(root, "/run.sh/nph-raw.sh", nph=["*/nph-*"]).nph
    assert found(root, "/run.sh", warm=True).warm
    assert found(root, "/sub/run.cgi", warm=["/sub/*"]).warm
    assert not found(root, "/run.sh", warm=["/sub/*"]).warm


def test_root_by_way_of_a_link(root: Path, tmp_path: Path) -> None:
    """RFC 3875 section 9.5: a root reached by symbolic links is the root; a sibling of like name is not."""
    link = tmp_path / "link"
    link.symlink_to(root)
    assert found(link, "/run.sh").filename == str(link / "run.sh")
    add(tmp_path / "root2" / "run.sh")
    (root / "sibling.sh").symlink_to("../root2/run.sh")
    assert status(link, "/sibling.sh") == 403
    assert found(Path("/"), str(root / "run.sh"))


def test_program_that_vanishes_and_no_access(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110 section 15.5.4: what may not be looked at is 403."""

    def refuse(*args: object, **kwargs: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert status(root, "/run.sh") == 403


def test_what_is_remembered_is_looked_at_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, program = ScriptPaths(root=root), root / "run.sh"

    def answer() -> int:
        result = find_script(paths, "/run.sh")
        return 200 if isinstance(result, Script) else result.status

    def answers(expected: int) -> None:
        assert [answer(), answer()] == [expected, expected]

    answers(200)
    program.chmod(0o644)
    answers(403)
    program.chmod(0o755)
    answers(200)
    program.unlink()
    answers(404)
    program.symlink_to(tmp_path / "secret.sh")
    answers(403)
    program.unlink()
    add(program)
    answers(200)
    # A second later, what a link in the path leads to is known again, even where the file is the same.
    root.rename(tmp_path / "moved")
    root.symlink_to(tmp_path / "moved")
    monkeypatch.setattr("poolsrv_cgi.scripts.LOOK_AFTER", 0.0)
    answers(403)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_no_room_to_look_is_no_404(root: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """RFC 9110 section 15.5.5: 404 says that there is nothing. A server out of descriptors does not know that."""
    assert status(root, "/nothing") == 404

    def refuse(*args: object, **kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    assert status(root, "/run.sh") == 503
    assert status(root, "/sub/", index="run.cgi") == 503
    answer = find_script_of_line(ScriptPaths(root=root), b"run.sh\n", arguments=False)
    assert isinstance(answer, NoScript)
    assert refusal(answer) == b"refused: the program can't be started\r\n"


def test_without_proc(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 3875 section 9.5: containment holds where there is no /proc."""

    def fail(path: object) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    paths = ScriptPaths(root=root)
    real = {str(root / name): os.path.realpath(root / name) for name in ("run.sh", "out.sh")}
    monkeypatch.setattr(os, "readlink", fail)
    monkeypatch.setattr(os.path, "realpath", lambda path: os.fsencode(real[os.fsdecode(path)]))
    assert isinstance(find_script(paths, "/run.sh"), Script)
    assert isinstance(find_script(paths, "/out.sh"), NoScript)


@given(st.text(alphabet="/.%2eEfF0ab~\\", max_size=30))
def test_decoded_paths_stay_below_the_top(path: str) -> None:
    """RFC 3986 section 5.2.4: whatever comes out has no dot segment, no empty one and no NUL."""
    decoded = decode_path("/" + path)
    if isinstance(decoded, NoScript):
        assert decoded.status == 400
        return
    assert decoded.startswith(b"/")
    segments = decoded[1:].split(b"/")
    assert not {b".", b".."} & set(segments)
    assert b"" not in segments[:-1]
    assert b"\0" not in decoded


class TestLine:
    """The "line" protocol: a program's name as a path below root, taken as it is."""

    def test_program(self, root: Path) -> None:
        """RFC 3875 section 7.2 by analogy: the program's own directory."""
        paths = ScriptPaths(root=root)
        for line in (b"sub/run.cgi\r\n", b"sub/run.cgi\n", b"sub/run.cgi", b" \tsub/run.cgi \r\n"):
            program = find_script_of_line(paths, line, arguments=False)
            assert isinstance(program, Script)
            assert program.argv == (str(root / "sub/run.cgi"),)
            assert program.directory == str(root / "sub")

    def test_arguments(self, root: Path) -> None:
        """RFC 3875 section 4.4 by analogy: arguments only where they are allowed."""
        paths = ScriptPaths(root=root)
        line = b"run.sh  -x\ta;b $(c) \xff\r\n"
        program = find_script_of_line(paths, line, arguments=True)
        assert isinstance(program, Script)
        assert program.argv == (str(root / "run.sh"), "-x", "a;b", "$(c)", "\udcff")
        answer = find_script_of_line(paths, line, arguments=False)
        assert isinstance(answer, NoScript)
        assert refusal(answer) == b"refused: arguments are not allowed\r\n"

    @pytest.mark.parametrize(
        "name",
        [
            b"/bin/ls", b"../secret.sh", b"../../bin/ls", b"sub/../run.sh", b"./run.sh", b"sub//run.cgi", b"run.sh/",
            b"out.sh", b"outdir/secret.sh", b"sub", b"notes", b"nothing", b"run.sh/x", b"a" * 300, b"a/" * 3000 + b"x",
        ],
    )  # fmt: skip
    def test_refused(self, root: Path, name: bytes) -> None:
        """RFC 3875 section 9.5: one answer for all of them, so that a client does not learn what files exist."""
        answer = find_script_of_line(ScriptPaths(root=root), name + b"\r\n", arguments=False)
        assert isinstance(answer, NoScript)
        assert refusal(answer) == b"refused: no such program\r\n"

    @pytest.mark.parametrize("line", [b"", b"\r\n", b"  \n", b"run.sh\0\n", b"run\rsh\n", b"run.sh\r\r\n"])
    def test_malformed(self, root: Path, line: bytes) -> None:
        """RFC 3875 section 9.5: nothing but a name is a name."""
        answer = find_script_of_line(ScriptPaths(root=root), line, arguments=True)
        assert isinstance(answer, NoScript)
        assert refusal(answer) == b"refused: not a valid request\r\n"
