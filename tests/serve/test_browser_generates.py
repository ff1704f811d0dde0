"""From the opened page to files, with a worker that generates."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.serve.by_hand import served
from tests.serve.pages import ANY, READY, browser, brushed, drag, generate, open_form, page, set_brush
from xgem.api import generate as generate_in_python
from xgem.serve.app import make_app
from xgem.serve.page.page import EXAMPLES
from xgem.serve.settings import Settings
from xgem.serve.state import Server

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

__all__ = ["browser", "page"]

SMALL = "chexgen-small"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, debug_checkpoint: Path) -> Iterator[str]:
    settings = Settings(tmp_path_factory.mktemp("server"), models=(str(debug_checkpoint), SMALL))
    with served(make_app(Server.open(settings), ["cpu"], page=True)) as address:
        yield address


def downloaded(page: Page, link: Locator) -> bytes:
    with page.expect_download() as download:
        link.click()
    return download.value.path().read_bytes()


def test_from_the_opened_page_to_downloaded_files(page: Page, url: str, debug_checkpoint: Path) -> None:
    page.set_default_timeout(90_000)  # the worker starts meanwhile
    open_form(page, url, ANY)
    page.get_by_role("combobox", name="Example report").select_option("Cardiomegaly")
    page.get_by_role("checkbox", name="Frontal").check()
    page.get_by_role("checkbox", name="Lateral").check()
    page.get_by_label("Seed", exact=True).fill("11")
    page.get_by_label("Steps", exact=True).fill("3")
    generate(page)
    page.get_by_role("heading", name="Results").wait_for()
    data = downloaded(page, page.get_by_role("link", name="Frontal 1 as DICOM"))
    dataset = pydicom.dcmread(io.BytesIO(data))
    assert dataset.SyntheticData == "YES"
    png = downloaded(page, page.get_by_role("link", name="Frontal 1 as PNG"))
    with Image.open(io.BytesIO(png)) as image:
        assert image.info["Synthetic"] == "true"
        np.testing.assert_array_equal(np.asarray(image), dataset.pixel_array)
    texts = dict(EXAMPLES)
    made = generate_in_python(
        {"report": texts["Cardiomegaly"]},
        ["frontal", "lateral"],
        model=debug_checkpoint,
        seed=11,
        num_inference_steps=3,
    )
    np.testing.assert_array_equal(np.asarray(made.frontal[0]), dataset.pixel_array)
    page.get_by_text("Provenance").click()
    assert page.locator("dt:has-text('Seed') + dd").inner_text() == "11"
    for name, ending in (("All as PNG and text (zip)", ".png"), ("All as DICOM (zip)", ".dcm")):
        with zipfile.ZipFile(io.BytesIO(downloaded(page, page.get_by_role("link", name=name)))) as archive:
            assert len([one for one in archive.namelist() if one.endswith(ending)]) == 2
    page.get_by_role("link", name="Edit frontal 1").click()
    page.get_by_text("Change only an area of the frontal").click()
    set_brush(page, "#edits .board", 8)
    drag(page, "#edits .board", (12, 10), (12, 22))
    page.get_by_label("Seed", exact=True).fill("12")
    generate(page)
    page.get_by_role("heading", name="Results").wait_for()
    edited = downloaded(page, page.get_by_role("link", name="Frontal 1 as PNG"))
    with Image.open(io.BytesIO(edited)) as image:
        changed = np.asarray(image) != dataset.pixel_array
    painted = brushed(((12, 10), (12, 22)), width=8)
    assert not (changed & ~painted).any()
    assert (changed & painted).sum() > painted.sum() / 2


def lungs(page: Page, bottom: int) -> np.ndarray:
    """The frontal radiograph with lungs drawn as two strokes down to a row."""
    page.get_by_text("Masks and boxes").click()
    set_brush(page, "#annotations .board", 64)
    for structure, column in (("right lung", 76), ("left lung", 180)):
        page.get_by_role("combobox", name="Structure").select_option(structure)
        drag(page, "#annotations .board", (column, 70), (column, bottom))
    page.get_by_label("Seed", exact=True).fill("1")
    page.get_by_label("Steps", exact=True).fill("8")
    generate(page)
    page.get_by_role("heading", name="Results").wait_for()
    png = downloaded(page, page.get_by_role("link", name="Frontal 1 as PNG"))
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image).astype(float)


def test_picture_follows_the_lungs_that_were_drawn(page: Page, url: str) -> None:
    """Where lungs are drawn the radiograph is darker than where, with the same seed, shorter ones are."""
    page.set_default_timeout(90_000)
    open_form(page, url, SMALL)
    long = lungs(page, 185)
    open_form(page, url, SMALL)
    short = lungs(page, 120)
    page.wait_for_selector(READY, state="detached")
    between = np.zeros((256, 256), bool)
    between[160:205, 50:102] = between[160:205, 154:206] = True
    assert short[between].mean() - long[between].mean() > 30
