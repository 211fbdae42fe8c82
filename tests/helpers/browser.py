"""A real browser: Debian's Chromium, driven by playwright. Its own package is used, so nothing is downloaded.

playwright takes a while to import, and each process that runs tests imports this module: so it is imported on use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.helpers.server import TIMEOUT
from tests.helpers.shells import require

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page
    from playwright.sync_api._generated import LocatorAssertions


def expect(shown: Locator) -> LocatorAssertions:
    """What a part of the page has to become."""
    from playwright.sync_api import expect as expect_of

    return expect_of(shown)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window; the test is skipped where there is no Chromium, but not in CI."""
    from playwright.sync_api import expect as expect_of
    from playwright.sync_api import sync_playwright

    expect_of.set_options(timeout=TIMEOUT * 1000)
    path = require("chromium")
    # Root can't have the sandbox. /dev/shm may be tiny in a container.
    arguments = ["--no-sandbox", "--disable-dev-shm-usage"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


class Tab:
    """A tab that shows one page, and notes all that the page complains about.

    :ivar page: what playwright drives.
    :ivar complaints: lines in the console, exceptions, and what the page's policy has stopped.
    """

    def __init__(self, browser: Browser, scheme: str = "light", phone: bool = False) -> None:
        self.complaints: list[str] = []
        self._context: BrowserContext = browser.new_context(
            color_scheme="dark" if scheme == "dark" else "light",
            viewport={"width": 360, "height": 740} if phone else {"width": 1280, "height": 900},
            is_mobile=phone,
            has_touch=phone,
        )
        self._context.set_default_timeout(TIMEOUT * 1000)
        self.page: Page = self._context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, url: str) -> Page:
        """Go to a page."""
        self.page.goto(url)
        return self.page

    def take_complaints(self) -> list[str]:
        """What the page has complained about, for a test that makes it complain."""
        found = list(self.complaints)
        self.complaints.clear()
        return found

    def leave(self) -> None:
        """Go away from the page, which must not have complained."""
        self.page.goto("about:blank")
        assert self.take_complaints() == []

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *arguments: object) -> None:
        self._context.close()
