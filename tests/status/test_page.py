"""The live page in a real Chromium, with events that a test has written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from poolsrv_status.page import CONTENT_SECURITY_POLICY, page

from poolsrv.cli.tables import span
from poolsrv.ipc.metrics import Distribution
from poolsrv.ipc.stats import MetricStats, Reload, SeriesStats
from tests.helpers.browser import Tab, chromium, expect
from tests.status.scripted import Scripted, document, histogram, launcher, listener, program, refusal, worker

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&amp;'\"`${1}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with Scripted() as running:
        yield running


@pytest.fixture
def scripted(server: Scripted) -> Scripted:
    server.begin()
    return server


@pytest.fixture(scope="module")
def shared_tab(browser: Browser) -> Iterator[Tab]:
    with Tab(browser) as opened:
        yield opened


@pytest.fixture
def tab(shared_tab: Tab) -> Iterator[Tab]:
    """For a test that is to see no complaint. One process of the browser is enough for all of them."""
    yield shared_tab
    shared_tab.leave()


def test_it_is_one_file_that_needs_no_other() -> None:
    text = page().decode()
    named = set(re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s)]+)""", text))
    assert {name for name in named if not name.startswith("data:")} == {"#main", "status.json"}
    assert set(re.findall(r"https?://[^'\"\s]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<[^>]*\s(?:on\w+|style)=", text)
    assert text.count("</script") == text.count("<script") == 1
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "innerHTML" not in text


def test_its_policy_stops_all_other_code(scripted: Scripted, tab: Tab) -> None:
    shown = tab.open(scripted.url)
    shown.evaluate("document.body.append(Object.assign(document.createElement('style'), {textContent: '*{}'}))")
    with pytest.raises(Exception, match="TrustedHTML"):
        shown.evaluate("document.body.innerHTML = '<b>'")
    with pytest.raises(Exception, match="TrustedScript"):
        shown.evaluate("document.createElement('script').text = '1'")
    complaints = tab.take_complaints()
    assert complaints
    assert all("Content Security Policy" in line or "Trusted" in line for line in complaints)


def test_what_others_have_named_is_text(scripted: Scripted, tab: Tab) -> None:
    labels = {"listener": HOSTILE, "plugin": HOSTILE, "status": HOSTILE}
    metrics = [
        MetricStats(HOSTILE, "counter", HOSTILE, [SeriesStats(labels, value=3)]),
        histogram("http_response_seconds", [0.1], labels),
        histogram(HOSTILE + "_seconds", [0.1], labels),
    ]
    for second in range(3):
        parts: dict[str, Any] = {
            "listeners": [listener(HOSTILE, HOSTILE, {HOSTILE: 3})],
            "programs": [program(30 + second, HOSTILE)],
            "launchers": [launcher(20, HOSTILE, HOSTILE)],
            "refusals": [refusal(HOSTILE, HOSTILE)],
            "workers": [worker(0, 11 + second, HOSTILE)],
            "last_reload": Reload(at=float(second), ok=False, errors=[HOSTILE]),
        }
        scripted.send(document(second, config=HOSTILE, metrics=metrics, **parts), "degraded", f"{second} {HOSTILE}")
    shown = tab.open(scripted.url)
    expect(shown.locator("#reason")).to_have_text("2 " + HOSTILE)
    expect(shown.locator("#config")).to_have_text(HOSTILE)
    expect(shown.locator("#listeners th[scope=row]")).to_have_text(HOSTILE)
    expect(shown.locator("#programs td").first).to_have_text(HOSTILE)
    for column, text in enumerate([HOSTILE, HOSTILE, "0"]):
        expect(shown.locator("#launchers td").nth(column)).to_have_text(text)
    expect(shown.locator("#refusals td").nth(1)).to_have_text(HOSTILE)
    expect(shown.locator("#reload-errors li")).to_have_text(HOSTILE)
    expect(shown.locator("#changes")).to_contain_text(HOSTILE)
    expect(shown.locator("#metrics th[scope=row]")).to_contain_text("<img src=x")
    assert shown.locator("img, body script:not([type=module])").count() == 0
    assert "owned" not in shown.title()


def test_rates_are_right_when_a_counter_begins_again(scripted: Scripted, tab: Tab) -> None:
    shown = tab.open(scripted.url)
    value = shown.locator(".plot", has_text="Connections per second").locator("b")
    scripted.send(document(1, accepted=1000))
    scripted.send(document(2, accepted=1010))
    expect(value).to_have_text("10/s")
    scripted.send(document(3, accepted=5))  # by an engine that does not keep its counts
    expect(value).to_have_text("7.5/s")
    scripted.send(document(1, accepted=3, pid=20))  # another server
    expect(shown.locator("#changes li").first).to_contain_text("another server answers: pid 20")
    expect(value).to_have_text(re.compile(r"^\d+(\.\d)?/s$"))


def test_percentiles_are_those_of_the_latest_values(scripted: Scripted, tab: Tab) -> None:
    old, new = [5.0] * 1000, [0.0003 * number for number in range(1, 200)]
    name = "http_response_seconds"
    own = histogram(name, [50.0] * 9, {"listener": "status"}).series  # the page does not show itself
    listeners = [listener("hello"), listener("status", "status")]
    for second, values in ((1, old), (2, old + new)):
        metric = histogram(name, values)
        metric.series.extend(own if second == 2 else [])
        scripted.send(document(second, metrics=[metric], listeners=listeners))
    shown = tab.open(scripted.url)
    expected = Distribution()
    for value in new:
        expected.observe(value)
    latency = shown.locator(".plot", has_text="Latency")
    quantiles = [span(expected.quantile(share)) for share in (0.5, 0.9, 0.99)]
    expect(latency.locator("b")).to_have_text(quantiles)
    expect(latency.locator("select")).to_have_value(name)
    row = shown.locator("#times tbody tr").first.locator("td")
    expect(row).to_have_text(["hello", "199", *quantiles, "1199", *(re.compile(r"\d") for _ in range(3))])


def test_workers_and_listeners_come_and_go(scripted: Scripted, tab: Tab) -> None:
    shown = tab.open(scripted.url)
    scripted.send(document(1))
    rows = shown.locator("#workers tbody tr")
    expect(rows).to_have_count(2)
    expect(shown.locator("#launchers-section")).to_be_hidden()
    rows.first.evaluate("row => row.dataset.kept = 'yes'")
    ends = MetricStats("poolsrv_worker_ends", "counter", "", [SeriesStats({"how": "killed"}, value=1)])
    parts: dict[str, Any] = {"listeners": [listener("hello"), listener("more")], "metrics": [ends]}
    scripted.send(document(2, workers=[worker(0, 11), worker(1, 13, "starting"), worker(2, 14, "draining")], **parts))
    expect(rows.locator("td:first-of-type")).to_have_text(["11", "13", "14"])
    assert rows.first.get_attribute("data-kept") == "yes"
    expect(shown.locator("#fact-ends")).to_have_text("1 killed")
    expect(shown.locator("#fact-workers")).to_have_text("1 of 3 serve")
    expect(shown.locator(".plot").first.locator(".mark")).to_have_count(1)
    told = ["listener more is new", "worker 1: pid 12 has ended, pid 13 replaces it", "worker 2: pid 14 is draining"]
    for text in told:
        expect(shown.locator("#changes")).to_contain_text(text)
    expect(shown.locator("#announcer")).to_have_text(". ".join(told))
    reload = Reload(at=3.0, ok=True)
    scripted.send(document(3, generation=2, last_reload=reload, workers=[worker(0, 21)], listeners=[listener("more")]))
    expect(rows).to_have_count(1)
    expect(shown.locator("#listeners tbody th")).to_have_text(["more"])
    expect(shown.locator("#announcer")).to_have_text("listener hello is gone. reload done: generation 2 serves")


def test_the_verdict_is_shown_and_told_once(scripted: Scripted, tab: Tab) -> None:
    shown = tab.open(scripted.url)
    scripted.send(document(1))
    expect(shown.locator("#verdict")).to_contain_text("well 2 workers, 1 connection")
    scripted.send(document(2), reason="2 workers, 7 connections")
    expect(shown.locator("#verdict")).to_contain_text("7 connections")
    expect(shown.locator("#announcer")).to_have_text("")
    scripted.send(document(3), "degraded", "1 worker stopped (1)")
    expect(shown.locator("#announcer")).to_have_text("degraded: 1 worker stopped (1)")
    shown.wait_for_function("document.title.startsWith('degraded · ')")
    scripted.send(None, "down", "the dispatcher does not answer")  # no document with it
    expect(shown.locator("#state")).to_have_text("down")
    expect(shown.locator("#reason")).to_have_text("the dispatcher does not answer")
    scripted.send(document(4))
    expect(shown.locator("#announcer")).to_contain_text("well again")
    assert shown.locator("#changes li").count() == 3
    scripted.send(document(5), "degraded", "the pool is stopping", ready=False)
    expect(shown.locator("#readiness")).to_have_text("not ready: degraded: the pool is stopping")


def test_a_lost_connection_and_old_figures_are_marked(scripted: Scripted, tab: Tab) -> None:
    shown = tab.open(scripted.url)
    scripted.send(document(1))
    connection = shown.locator("#connection")
    expect(connection).to_have_text("live")
    expect(connection).to_contain_text("no news, figures of ")
    scripted.answers = 503
    scripted.hang_up()
    expect(connection).to_contain_text("connection lost, trying again, figures of ")
    expect(shown.locator("#changes")).to_contain_text("connection lost")
    scripted.answers = 200
    scripted.send(document(9))
    expect(connection).to_have_text("live")
    expect(shown.locator("#changes")).to_contain_text("connected again")
    assert all("503" in line for line in tab.take_complaints())


def test_pause_keeps_the_figures(scripted: Scripted, tab: Tab) -> None:
    shown = tab.open(scripted.url)
    scripted.send(document(1, accepted=7))
    accepted, pause = shown.locator("#fact-accepted"), shown.get_by_role("button", name="Pause")
    expect(accepted).to_have_text("7")
    pause.click()
    expect(shown.locator("#connection")).to_have_text("paused")
    scripted.send(document(2, accepted=8, listeners=[listener("more")]))
    expect(shown.locator("#changes")).to_contain_text("listener more is new")
    expect(accepted).to_have_text("7")
    pause.click()
    expect(accepted).to_have_text("8")


def test_the_keyboard_reads_a_plot(scripted: Scripted, tab: Tab) -> None:
    shown = tab.open(scripted.url)
    for second, accepted in enumerate((0, 10, 30, 30, 30)):
        scripted.send(document(second, accepted=accepted))
    plot = shown.locator(".plot", has_text="Connections per second")
    field, value = plot.get_by_role("slider"), plot.locator("b")
    expect(value).to_have_text("7.5/s")
    shown.keyboard.press("Tab")
    expect(shown.locator(".skip")).to_be_focused()
    shown.keyboard.press("Tab")
    shown.keyboard.press("Tab")
    expect(field).to_be_focused()
    assert field.evaluate("element => getComputedStyle(element).outlineStyle") != "none"
    for key in ("ArrowLeft", "ArrowLeft"):
        shown.keyboard.press(key)
    expect(value).to_have_text("15/s")
    expect(field).to_have_attribute("aria-valuetext", re.compile(r"^\d\d:\d\d:\d\d: 15/s$"))
    expect(field).to_have_attribute("aria-valuenow", "-2")
    shown.keyboard.press("Escape")
    expect(value).to_have_text("7.5/s")
    box = field.bounding_box()
    assert box is not None
    shown.mouse.move(box["x"] + box["width"] * (1 - 3 / 60), box["y"] + 30)
    expect(value).to_have_text("10/s")
    expect(plot.locator(".cursor")).to_have_count(1)
    expect(plot.locator(".summary")).to_contain_text("0/s to 15/s")


def test_the_history_is_bounded(scripted: Scripted, tab: Tab) -> None:
    shown = tab.open(scripted.url)
    for second in range(400):
        scripted.send(document(second, accepted=second * 10))
    plot = shown.locator(".plot", has_text="Connections per second")
    expect(plot.locator(".summary")).to_contain_text("in 5 min")
    path = plot.locator("path.line").get_attribute("d")
    assert path is not None
    assert 290 < path.count("L") <= 301


def fill(scripted: Scripted) -> None:
    """What a busy server shows, the latest last."""
    address = "unix:/run/a-rather-long-folder/of-sockets/and-a-name.sock"
    for second in range(8):
        listeners = [listener(f"listener-{number}", "cgi", {"max_connections": 4}) for number in range(4)]
        parts: dict[str, Any] = {
            "programs": [
                program(40 + number, "/srv/cgi-bin/report.py --with --many --arguments") for number in range(3)
            ],
            "launchers": [launcher(20 + number, "www-data", f"listener-{number}") for number in range(3)],
            "refusals": [refusal(address)] * 3,
            "metrics": [histogram("http_response_seconds", [0.001 * n for n in range(1, 9 + second)])],
        }
        scripted.send(
            document(second, accepted=second**3, listeners=listeners, **parts), "degraded", "1 worker full (1)"
        )


@pytest.mark.parametrize(("scheme", "phone"), [("light", False), ("dark", True)])
def test_it_is_accessible(browser: Browser, scripted: Scripted, scheme: str, phone: bool) -> None:
    from axe_playwright_python.sync_playwright import Axe

    fill(scripted)
    with Tab(browser, scheme, phone) as tab:
        shown = tab.open(scripted.url)
        expect(shown.locator("#listeners tbody tr")).to_have_count(4)
        expect(shown.locator(".plot path.line").first).to_have_attribute("d", re.compile("L"))
        if phone:
            assert not shown.evaluate("document.documentElement.scrollWidth > innerWidth")
            # What does not fit is scrolled within itself, by the keyboard too.
            expect(shown.locator(".scroll", has=shown.locator("#workers"))).to_have_attribute("tabindex", "0")
        ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", ground))) > 128) == (scheme == "light")
        violations = Axe().run(shown).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in violations] == []
        assert tab.complaints == []
