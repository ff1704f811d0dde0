"""The page in a browser: the fixtures of its tests, and what they do on it again and again."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.browser import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

READY = "#request:not([aria-busy])"
ANY, CONTROL = "random", "control"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page at which nothing may go wrong: no script fails, and nothing is against the policy."""
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(30_000)  # the first picture waits for the process that reads it
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
    yield page
    context.close()
    assert not wrong


def open_form(page: Page, url: str, model: str = ANY) -> None:
    page.goto(url)
    page.wait_for_selector(READY)
    page.get_by_role("combobox", name="Checkpoint").select_option(model)


def until(page: Page, expression: str) -> None:
    """Wait for an expression of the page; the browser's own waiting is against the policy."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {expression}")


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()
    page.wait_for_url("**/generations/*")


def picture(tmp_path: Path, name: str = "chest.png", side: int = 32) -> tuple[Path, np.ndarray]:
    """A drawn picture on the model's grid, and its grey levels."""
    rows, columns = np.mgrid[:side, :side]
    levels = ((rows * 2 + columns) % 256).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / name)
    return tmp_path / name, levels


def mask_of(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        levels = np.asarray(image.convert("RGB"))
    assert set(np.unique(levels)) <= {0, 255}
    assert (levels == levels[..., :1]).all()
    return levels[..., 0] == 255


def brushed(*strokes: tuple[tuple[float, float], tuple[float, float]], width: float, side: int = 32) -> np.ndarray:
    """Pixels whose centre is within half the ``width`` of a stroke from (x, y) to (x, y)."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    painted = np.zeros((side, side), bool)
    for start, end in strokes:
        (x0, y0), (x1, y1) = start, end
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        along = ((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / length if length else np.zeros_like(rows)
        along = along.clip(0, 1)
        far = (columns - x0 - along * (x1 - x0)) ** 2 + (rows - y0 - along * (y1 - y0)) ** 2
        painted |= far <= (width / 2) ** 2
    return painted


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def set_brush(page: Page, board: str, size: int) -> None:
    page.locator(f"{board} .brush").fill(str(size))


def drag(page: Page, board: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag on a board from (x, y) to (x, y) of its grid."""
    canvas = page.locator(f"{board} canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    scale = box["width"] / canvas.evaluate("canvas => canvas.width")
    points = [(box["x"] + x * scale, box["y"] + y * scale) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=7)
    page.mouse.up()
