"""The live page of a real server in a real Chromium: it shows what happens there."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.helpers.browser import Tab, chromium, expect
from tests.helpers.server import ServerProcess

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def shared_tab(browser: Browser) -> Iterator[Tab]:
    with Tab(browser) as opened:
        yield opened


@pytest.fixture
def tab(shared_tab: Tab, server: ServerProcess) -> Iterator[Tab]:
    shared_tab.open(f"http://{server.addresses('status')[0]}/")
    expect(shared_tab.page.locator("#connection")).to_have_text("live")
    yield shared_tab
    shared_tab.leave()


def number(locator: Locator) -> float:
    return float(re.sub(r"[^\d.]", "", locator.inner_text()))


def test_figures_change_while_load_runs(server: ServerProcess, tab: Tab) -> None:
    accepted = tab.page.locator("#fact-accepted")
    expect(accepted).to_have_text(re.compile(r"\d"))
    before = number(accepted)
    for _ in range(40):
        server.exchange("hello", b"hi")
    tab.page.wait_for_function(
        "least => Number(document.getElementById('fact-accepted').textContent) >= least", arg=before + 40
    )
    rate = tab.page.locator(".plot", has_text="Connections per second").locator("b")
    expect(rate).to_have_text(re.compile(r"[1-9]"))
    row = tab.page.locator("#listeners tr", has_text="hello").locator("td")
    assert number(row.nth(5)) >= 40
    expect(tab.page.locator("#times")).to_contain_text("connection duration")


def test_a_killed_worker_shows(server: ServerProcess, tab: Tab) -> None:
    pids = tab.page.locator("#workers tbody td:first-of-type")
    shown = tab.page.locator("#workers")
    victim = int(pids.nth(1).inner_text())
    assert victim in server.worker_pids()
    os.kill(victim, signal.SIGKILL)
    expect(shown).not_to_contain_text(str(victim))
    expect(tab.page.locator("#fact-ends")).to_contain_text("1 killed")
    expect(tab.page.locator("#changes")).to_contain_text(re.compile(rf"pid {victim} has ended, pid \d+ replaces it"))
    expect(tab.page.locator("#state")).to_have_text("well")


def test_a_stopped_worker_degrades_the_verdict(server: ServerProcess, tab: Tab) -> None:
    victim = int(tab.page.locator("#workers tbody tr", has_text="serving").locator("td").first.inner_text())
    os.kill(victim, signal.SIGSTOP)
    try:
        expect(tab.page.locator("#verdict")).to_contain_text("degraded 1 worker")
        expect(tab.page.locator("#workers tr", has_text=str(victim))).to_contain_text("stopped")
    finally:
        os.kill(victim, signal.SIGCONT)
    expect(tab.page.locator("#state")).to_have_text("well")


def test_a_reload_shows_and_the_page_goes_on(server: ServerProcess, tab: Tab) -> None:
    former = server.file.read_text()
    server.file.write_text(former + '[listeners.new]\nbind = "127.0.0.1:0"\nhandler = "echo"\n')
    server.reload()
    expect(tab.page.locator("#generation")).to_have_text("2")
    expect(tab.page.locator("#listeners th[scope=row]").last).to_have_text("new")
    expect(tab.page.locator("#changes")).to_contain_text("reload done: generation 2 serves")
    expect(tab.page.locator("#connection")).to_have_text("live")
    server.file.write_text(former + "[listeners.wrong]\n")
    server.signal(signal.SIGHUP)
    expect(tab.page.locator("#reload-errors")).to_contain_text("listeners.wrong")
    expect(tab.page.locator("#verdict")).to_contain_text("degraded the last reload has failed")
