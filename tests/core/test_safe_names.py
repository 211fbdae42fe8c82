"""Root and names that another user can change: it follows no link, and gives no file away."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from poolsrv.config.model import ListenerConfig
from poolsrv.core.listening_sockets import ListeningSocket, give_up
from poolsrv.core.safe_names import Folder, Socket, open_for_appending, open_private_folder
from poolsrv.dispatcher import bind
from poolsrv.dispatcher.bound import Bound
from poolsrv.errors import StartError
from poolsrv.net.addresses import Address
from tests.helpers.server import ServerProcess
from tests.helpers.strangers import ROOT, STRANGER, open_tmp, stranger, swap

Serve = Callable[..., ServerProcess]
ECHO = '[listeners.hello]\nbind = "unix:{path}"\nhandler = "echo"\nsocket_mode = 0o660\n'

__all__ = ["open_tmp"]
pytestmark = ROOT


@pytest.fixture
def theirs(open_tmp: Path) -> Path:
    """A folder of another user, inside one of root."""
    folder = open_tmp / "theirs"
    folder.mkdir(mode=0o755)
    os.chown(folder, STRANGER, STRANGER)
    return folder


@pytest.fixture
def victim(open_tmp: Path) -> Path:
    """A file that only root can read."""
    file = open_tmp / "victim"
    file.write_text("root's\n")
    file.chmod(0o600)
    return file


def assert_untouched(victim: Path) -> None:
    found = victim.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o600)
    assert victim.read_text() == "root's\n"


def bind_unix(path: Path, held: dict[str, ListeningSocket] | None = None, mode: int | None = 0o660) -> Bound:
    config = ListenerConfig("a", (Address(socket.AF_UNIX, path=str(path)),), handler="echo", socket_mode=mode)
    return bind.bind((config,), held or {}, (STRANGER, STRANGER))[0][0]


# --- the way to a folder


def test_a_link_of_roots_in_a_folder_of_roots_is_followed(open_tmp: Path) -> None:
    (open_tmp / "real").mkdir()
    (open_tmp / "link").symlink_to("real")
    (open_tmp / "absolute").symlink_to(open_tmp / "link")
    with Folder(str(open_tmp / "absolute" / "name")) as folder:
        assert os.path.samestat(os.fstat(folder.fd), (open_tmp / "real").stat())
        assert (folder.name, folder.fixed, folder.shared) == ("name", True, False)


@pytest.mark.parametrize("target", ["root", "{root}", "../root", "."])
def test_a_link_that_another_user_can_change_is_not_followed(open_tmp: Path, theirs: Path, target: str) -> None:
    (open_tmp / "root").mkdir()
    (theirs / "link").symlink_to(target.format(root=open_tmp / "root"))
    with pytest.raises(OSError, match="link is a symbolic link that others can change") as caught:
        Folder(str(theirs / "link" / "name"))
    assert caught.value.errno == errno.ELOOP


def test_in_a_sticky_folder_the_links_of_root_are_followed_and_no_others(open_tmp: Path) -> None:
    sticky = open_tmp / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "roots").symlink_to("/")
    (sticky / "theirs").symlink_to("/")
    os.chown(sticky / "theirs", STRANGER, STRANGER, follow_symlinks=False)
    with Folder(str(sticky / "roots" / "name")) as folder:
        assert folder.fixed
    with Folder(str(sticky / "name")) as folder:
        assert (folder.fixed, folder.shared) == (True, True)
    with pytest.raises(OSError, match="symbolic link"):
        Folder(str(sticky / "theirs" / "name"))


def test_links_in_a_circle(open_tmp: Path) -> None:
    (open_tmp / "a").symlink_to("b")
    (open_tmp / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        Folder(str(open_tmp / "a" / "name"))


def test_folders_are_made_only_where_no_link_leads(open_tmp: Path, theirs: Path) -> None:
    (theirs / "link").symlink_to(open_tmp)
    with pytest.raises(OSError, match="symbolic link"):
        Folder(str(theirs / "link" / "new" / "name"), 0o700)
    assert not (open_tmp / "new").exists()
    Folder(str(theirs / "one" / "two" / "name"), 0o700).close()
    assert stat.S_IMODE((theirs / "one" / "two").stat().st_mode) == 0o700


# --- unix sockets


def test_a_socket_in_a_folder_of_the_users_is_given_to_him(theirs: Path) -> None:
    bound = bind_unix(theirs / "s")
    found = (theirs / "s").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (STRANGER, STRANGER, 0o660)
    assert str(bound) == f"unix:{theirs}/s"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(theirs / "s"))
    give_up(bound.held)
    assert not (theirs / "s").exists()


@pytest.mark.parametrize("name", ["file", "dangling", "live"])
def test_a_link_in_the_place_of_a_socket_is_refused(theirs: Path, victim: Path, open_tmp: Path, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(open_tmp / "live.sock"))
        live.listen()
        target = {"file": victim, "dangling": open_tmp / "none", "live": open_tmp / "live.sock"}[name]
        (theirs / "s").symlink_to(target)
        with pytest.raises(StartError, match="there is a file of that name, and it is no socket"):
            bind_unix(theirs / "s")
    assert (theirs / "s").is_symlink()
    assert_untouched(victim)


def test_a_stale_socket_of_a_third_user_is_left_where_anybody_could_have_put_it(theirs: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(theirs / "s"))
    os.chown(theirs / "s", STRANGER + 1, -1)
    with pytest.raises(
        StartError, match=f"there is a socket of user {STRANGER + 1}, in a directory where others may write"
    ):
        bind_unix(theirs / "s")
    os.chown(theirs / "s", STRANGER, -1)
    give_up(bind_unix(theirs / "s").held)


def test_a_socket_that_stands_is_not_mended_by_name(theirs: Path, victim: Path) -> None:
    """A reload sets the mode of the file that was bound, or of no file."""
    first = bind_unix(theirs / "s")
    held = {first.held.key: first.held}
    again = bind_unix(theirs / "s", held, 0o600)
    assert not again.is_new
    assert stat.S_IMODE((theirs / "s").stat().st_mode) == 0o600
    (theirs / "s").rename(theirs / "aside")
    (theirs / "s").symlink_to(victim)
    with pytest.raises(StartError, match="it is no socket"):
        bind_unix(theirs / "s", held)
    (theirs / "s").unlink()
    (theirs / "aside").rename(theirs / "s")
    os.link(theirs / "s", theirs / "second")
    with pytest.raises(StartError, match="that socket has a second name"):
        bind_unix(theirs / "s", held)
    give_up(first.held)
    assert_untouched(victim)


def test_at_the_end_only_the_sockets_own_file_is_removed(theirs: Path, victim: Path, open_tmp: Path) -> None:
    bound = bind_unix(theirs / "s")
    theirs.rename(open_tmp / "moved")
    (open_tmp / "theirs").symlink_to("moved")
    os.chown(open_tmp / "theirs", STRANGER, -1, follow_symlinks=False)
    give_up(bound.held)  # through another user's link
    assert (open_tmp / "moved" / "s").exists()
    found = victim.stat()
    give_up(ListeningSocket("key", socket.socket(socket.AF_UNIX), str(victim), (found.st_dev, found.st_ino)))
    assert_untouched(victim)


@pytest.mark.parametrize("other", ["link", "second name", "file", "another user's", "nothing"])
def test_what_takes_the_place_of_a_socket_right_after_it_was_bound(
    theirs: Path, victim: Path, open_tmp: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    path = theirs / "s"
    with socket.socket(socket.AF_UNIX) as roots:
        roots.bind(str(open_tmp / "roots"))
        (open_tmp / "roots").chmod(0o600)

        def swapped(folder: Folder) -> Socket:
            path.rename(theirs / "aside")
            if other == "link":
                path.symlink_to(victim)
            elif other == "second name":
                path.hardlink_to(open_tmp / "roots")
            elif other == "file":
                path.hardlink_to(victim)
            elif other == "another user's":
                os.chown(theirs / "aside", STRANGER, STRANGER)
                (theirs / "aside").rename(path)
            return Socket(folder)

        monkeypatch.setattr(bind, "Socket", swapped)
        with pytest.raises(StartError, match="can't listen on unix:"):
            bind_unix(path)
    assert_untouched(victim)
    found = (open_tmp / "roots").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o600)


def test_a_race_for_the_name_of_a_socket(theirs: Path, victim: Path) -> None:
    with stranger(lambda: swap(theirs, "s", victim)):
        for _ in range(200):
            try:
                give_up(bind_unix(theirs / "s").held)
            except StartError:
                pass  # the stranger was faster: an error, and no harm done
            (theirs / "s").unlink(missing_ok=True)
    assert_untouched(victim)


@pytest.mark.server
def test_a_server_whose_socket_another_user_swaps(serve: Serve, theirs: Path, victim: Path) -> None:
    text = f"[pool]\nworkers = 1\nuser = {STRANGER}\ngroup = {STRANGER}\n" + ECHO.format(path=theirs / "s")
    with stranger(lambda: swap(theirs, "s", victim)):
        for _ in range(5):
            server = serve(text, ready=False)
            server.wait_for_line(r"\bready\b|can't listen on")
            server.stop()
            (theirs / "s").unlink(missing_ok=True)
    assert_untouched(victim)


# --- files that are written to


def test_a_log_is_not_written_where_a_link_leads(theirs: Path, victim: Path) -> None:
    (theirs / "link").symlink_to(victim)
    (theirs / "folder").symlink_to(victim.parent)
    os.link(victim, theirs / "hard")
    for name in ("link", "folder/victim", "folder/new", "hard"):
        for owner in (None, (STRANGER, STRANGER)):
            with pytest.raises(OSError, match=r"symbolic link|second name"):
                open_for_appending(str(theirs / name), 0o640, owner)
    (theirs / "hard").unlink()
    assert_untouched(victim)
    assert not (victim.parent / "new").exists()


def test_a_log_in_a_folder_of_the_users(theirs: Path) -> None:
    path = theirs / "log"
    os.close(open_for_appending(str(path), 0o640, (STRANGER, STRANGER)))
    found = path.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (STRANGER, 0o640)
    fd = open_for_appending(str(path), 0o640, (STRANGER, STRANGER))
    os.write(fd, b"line\n")
    os.close(fd)
    assert path.read_text() == "line\n"
    os.chown(path, STRANGER + 1, -1)
    with pytest.raises(PermissionError):
        open_for_appending(str(path), 0o640, (STRANGER, STRANGER))


def test_a_log_of_roots_may_be_a_link_of_roots(open_tmp: Path) -> None:
    (open_tmp / "real").mkdir()
    (open_tmp / "log").symlink_to("real/log")
    for _ in range(2):
        os.close(open_for_appending(str(open_tmp / "log"), 0o640))
    assert (open_tmp / "real" / "log").is_file()


def test_a_private_folder_is_one_that_no_other_user_can_change(open_tmp: Path, theirs: Path) -> None:
    private = open_tmp / "private"
    private.mkdir(mode=0o700)
    fd = open_private_folder(str(private))
    assert os.listdir(fd) == []
    os.close(fd)
    (open_tmp / "link").symlink_to(private)
    os.close(open_private_folder(str(open_tmp / "link")))
    (theirs / "mine").mkdir(mode=0o700)
    (theirs / "link").symlink_to(private)
    for path, message in (
        (theirs, "belongs to user"), (theirs / "mine", "on the way to it"), (theirs / "link", "symbolic link"),
        (open_tmp / "none", "No such file"), (private / "file", "Not a directory"),
    ):  # fmt: skip
        (private / "file").touch()
        with pytest.raises(OSError, match=message):
            open_private_folder(str(path))
    for mode in (0o720, 0o702, 0o1777):
        private.chmod(mode)
        with pytest.raises(PermissionError, match=f"mode {mode:04o}"):
            open_private_folder(str(private))


def test_standard_output_as_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    fd = open_for_appending("/dev/stdout", 0o640)
    os.write(fd, b"line\n")
    os.close(fd)
    assert capfd.readouterr().out.endswith("line\n")


@pytest.mark.server
@pytest.mark.parametrize("table", ["log", "access_log"])
def test_a_server_does_not_log_where_a_link_leads(serve: Serve, theirs: Path, victim: Path, table: str) -> None:
    (theirs / "log").symlink_to(victim)
    path = theirs / "log"
    text = '[pool]\nworkers = 1\nmax_boot_failures = 1\n[listeners.a]\nbind = "127.0.0.1:0"\nhandler = "cgi"\n'
    text += f'[listeners.a.cgi]\nroot = "{victim.parent}"\n'
    text += f'access_log = "{path}"\n' if table == "access_log" else f'[log]\nfile = "{path}"\n'
    server = serve(text, ready=False)
    assert server.wait() == 1
    assert "is a symbolic link that others can change" in server.log
    assert_untouched(victim)
