"""A whole study in a browser, from the links that the command prints, by the keyboard alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import pytest
import uvicorn

from tests.browser import chromium
from tests.conftest import Ran
from xgem.readers.report import report_of
from xgem.readers.results import readings_of
from xgem.readers.server import reader_app
from xgem.readers.study import Study, new_links
from xgem.web.run import address_of, listen

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page


class Served(NamedTuple):
    study: Study
    links: dict[str, str]


@pytest.fixture
def served(new_study: Callable[..., Study], xgem: Callable[..., Ran]) -> Iterator[Served]:
    """A study of XGeM's five tasks with two items each, served by the command."""
    study = new_study(items=1, turing=True)
    command = [sys.executable, "-m", "xgem", "readers", "serve", str(study.folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = next(line.split()[1] for line in server.stderr if line.startswith("xgem: http"))
        done = xgem("readers", "links", study.folder, "--url", url)
        yield Served(study, dict(line.split() for line in done.out.splitlines()))
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM)


@pytest.fixture
def in_thread(new_study: Callable[..., Study]) -> Iterator[Served]:
    """The same, served within this process."""
    study = new_study(items=1, turing=True)
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(reader_app(study), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield Served(study, {name: f"{address_of(listening)}/r/{token}" for name, token in new_links(study).items()})
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def open_page(context: BrowserContext, link: str, errors: list[str]) -> Page:
    """The first page behind a link; what the browser complains of (a violated policy, for one) goes to ``errors``."""
    page = context.new_page()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(link)
    page.wait_for_url("**/")
    return page


def confirm(page: Page, *keys: str) -> None:
    """Press keys, then Enter, which leads to another page."""
    for key in keys:
        page.keyboard.press(key)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def begin(page: Page) -> None:
    """Go on from the first page, whose button has the focus (a moment after the page has loaded)."""
    page.locator("button:focus").wait_for()
    confirm(page)


def read(page: Page, score: str, items: int | None = None) -> int:
    """Answer the current task's items, at most ``items``; how many were left."""
    count = 0
    if page.locator("button", has_text="Begin").or_(page.locator("button", has_text="Go on")).count():
        begin(page)
        while "/items/" in page.url and count != items:
            confirm(page, score, "r")
            count += 1
    return count


def end_task(page: Page) -> None:
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "End this task":
            break
    confirm(page)


def wait_for_scale(page: Page, wanted: Callable[[float], bool]) -> None:
    """Until the first picture's zoom is as wanted; the page's own policy forbids Playwright's waiting by eval."""
    scale = "new DOMMatrix(getComputedStyle(document.querySelector('.frame img')).transform).a"
    for _ in range(100):
        if wanted(page.evaluate(scale)):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"zoom stays {page.evaluate(scale)}")


def test_two_readers_by_the_keyboard(served: Served, browser: Browser) -> None:
    errors: list[str] = []
    anna, ben = browser.new_context(), browser.new_context(color_scheme="dark")
    first = open_page(anna, served.links["anna"], errors)
    for task in range(5):
        assert read(first, "4") == 2
        assert f"task {task + 1} of 5" in first.inner_text("main")
        end_task(first)
    assert "All 5 tasks are done" in first.inner_text("main")
    # The other one leaves within the first task, and comes back in another browser
    second = open_page(ben, served.links["ben"], errors)
    assert read(second, "2", items=1) == 1
    ben.close()
    assert sum(one.score is not None for one in readings_of(served.study)) == 11
    second = open_page(browser.new_context(), served.links["ben"], errors)
    assert "1 of 2 items answered" in second.inner_text("main")
    for task in range(5):
        assert read(second, "2") == (2 if task else 1)
        end_task(second)
    assert errors == []
    report = report_of(served.study)
    assert report.state == "All 20 answers of 2 readers."
    assert {(one.reader, one.score, one.guess) for one in report.readings} == {("anna", 4, "real"), ("ben", 2, "real")}
    assert all((one.seconds or 0) > 0 for one in report.readings)


def test_views_of_an_item(in_thread: Served, browser: Browser) -> None:
    """On a phone nothing is wider than it; pictures zoom and have a window; the page is dark where that is wished."""
    errors: list[str] = []
    phone = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page = open_page(phone, in_thread.links["anna"], errors)
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(wide)
    begin(page)
    while page.locator(".frame img").count() == 0:  # until an item with a picture
        confirm(page, "3", "s")
        if page.url.endswith("/"):
            end_task(page)
            begin(page)
    assert not page.evaluate(wide)
    assert page.evaluate("document.querySelector('.frame img').naturalWidth") == in_thread.study.size

    image = page.locator(".frame img").first
    page.keyboard.press("+")
    wait_for_scale(page, lambda scale: scale > 1.2)
    page.keyboard.press("0")
    wait_for_scale(page, lambda scale: scale == 1)
    before = image.screenshot()
    page.locator("summary").press("Enter")
    for _ in range(10):
        page.locator("#level").press("ArrowLeft")
    assert float(page.get_attribute("#window feFuncR", "intercept") or 0) == pytest.approx(0.1)
    assert image.screenshot() != before

    background = "getComputedStyle(document.documentElement).backgroundColor"
    colours = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours.add(page.evaluate(background))
    assert len(colours) == 2
    assert errors == []
