"""The page in a browser, on a server whose requests move on when a test moves them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.serve.by_hand import ByHand, served
from tests.serve.pages import (
    ANY,
    CONTROL,
    READY,
    browser,
    brushed,
    drag,
    generate,
    mask_of,
    open_form,
    overlap,
    page,
    picture,
    set_brush,
    until,
)  # fmt: skip
from xgem.data.annotation_files import read_boxes
from xgem.serve.app import make_app
from xgem.serve.requests import Body
from xgem.serve.settings import Settings
from xgem.serve.state import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser", "page"]


@pytest.fixture(scope="module")
def everything(
    tmp_path_factory: pytest.TempPathFactory, debug_checkpoint: Path, chexgen_checkpoint: Path
) -> Iterator[ByHand]:
    models = (str(debug_checkpoint), str(chexgen_checkpoint))
    server = Server.open(Settings(tmp_path_factory.mktemp("server"), models=models))
    with served(make_app(server, page=True)) as url:
        yield ByHand(server, url)


@pytest.fixture
def api(everything: ByHand) -> ByHand:
    everything.empty()
    return everything


def finished(page: Page, api: ByHand) -> None:
    """Generate, and be done with it."""
    generate(page)
    api.done()
    page.get_by_role("heading", name="Results").wait_for()


def test_what_is_filled_in_is_what_is_sent(page: Page, api: ByHand, tmp_path: Path) -> None:
    file, _ = picture(tmp_path)
    open_form(page, api.url)
    page.get_by_label("Frontal radiograph", exact=True).set_input_files(file)
    page.get_by_alt_text("Frontal radiograph, as the model sees it").wait_for()
    assert page.get_by_role("checkbox", name="Frontal").is_disabled()
    page.get_by_role("combobox", name="Example report").select_option("Effusion")
    assert page.get_by_role("checkbox", name="Report").is_disabled()
    page.get_by_role("checkbox", name="Lateral").check()
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_label("Guidance", exact=True).fill("lateral=2")
    page.get_by_role("combobox", name="Several outputs jointly").select_option("false")
    page.get_by_text("More options").click()
    page.get_by_label("Greedy").uncheck()
    page.get_by_role("combobox", name="Voi").select_option("window")
    generate(page)
    assert api.last.request == {
        "inputs": {"frontal": {"file": True}, "report": {"value": "Large left pleural effusion."}},
        "image": [],
        "mask_image": [],
        "outputs": ["lateral"],
        "options": {"guidance_scale": {"lateral": 2.0}, "joint": False, "greedy": False, "voi": "window"},
        "model": ANY,
    }
    assert api.last.seed == 7
    assert api.files(api.last) == {"frontal": file.read_bytes()}


def test_dropped_file_is_taken_and_can_be_removed(page: Page, api: ByHand, tmp_path: Path) -> None:
    _, levels = picture(tmp_path)
    np.save(tmp_path / "dropped.npy", levels)  # browsers cannot show it themselves
    open_form(page, api.url)
    data = list((tmp_path / "dropped.npy").read_bytes())
    transfer = page.evaluate_handle(
        """data => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(data)], "dropped.npy"));
          return transfer;
        }""",
        data,
    )
    page.locator("#pictures .picture").nth(1).dispatch_event("drop", {"dataTransfer": transfer})
    page.get_by_alt_text("Lateral radiograph, as the model sees it").wait_for()
    page.get_by_role("button", name="Remove Lateral radiograph").click()
    assert not page.get_by_role("checkbox", name="Lateral").is_disabled()
    page.locator("#pictures .picture").nth(1).dispatch_event("drop", {"dataTransfer": transfer})
    page.get_by_alt_text("Lateral radiograph, as the model sees it").wait_for()
    page.get_by_role("checkbox", name="Frontal").check()
    generate(page)
    assert api.files(api.last) == {"lateral": (tmp_path / "dropped.npy").read_bytes()}


def test_masks_are_sent_as_they_were_drawn(page: Page, api: ByHand) -> None:
    open_form(page, api.url, CONTROL)
    page.get_by_text("Masks and boxes").click()
    board = "#annotations .board"
    set_brush(page, board, 6)
    drag(page, board, (8, 5), (8, 20))
    page.get_by_role("combobox", name="Structure").select_option("right lung")
    drag(page, board, (20, 10), (26, 25))
    page.get_by_role("radio", name="Eraser").check()
    set_brush(page, board, 4)
    drag(page, board, (20, 10), (20, 10))
    page.get_by_role("radio", name="Brush").check()
    drag(page, board, (3, 30), (30, 30))
    page.get_by_role("button", name="Undo").click()
    generate(page)
    files = api.files(api.last)
    assert set(files) == {"mask:left lung", "mask:right lung"}
    assert overlap(mask_of(files["mask:left lung"]), brushed(((8, 5), (8, 20)), width=6)) > 0.95
    expected = brushed(((20, 10), (26, 25)), width=6) & ~brushed(((20, 10), (20, 10)), width=4)
    assert overlap(mask_of(files["mask:right lung"]), expected) > 0.95
    page.get_by_role("link", name="Use again").click()
    page.get_by_text("Right lung, ").wait_for()
    generate(page)
    again = api.files(api.last)
    assert {name: mask_of(data).tolist() for name, data in again.items()} == {
        name: mask_of(data).tolist() for name, data in files.items()
    }


def test_boxes_are_sent_as_they_were_dragged_and_typed(page: Page, api: ByHand) -> None:
    open_form(page, api.url, CONTROL)
    page.get_by_text("Masks and boxes").click()
    page.get_by_role("radio", name="Box").check()
    drag(page, "#annotations .board", (24, 8), (16, 20))
    page.get_by_role("combobox", name="Class").select_option("effusion")
    page.get_by_role("button", name="Add a box").click()
    typed = {"Left": 0.125, "Top": 0.5, "Width": 0.25, "Height": 0.375}
    for name, value in typed.items():
        page.locator("#boxes li").nth(1).get_by_label(name).fill(str(value))
    generate(page)
    sent = api.last.request["inputs"]["boxes"]["value"]
    first, second = read_boxes(sent).boxes
    assert (first.label, second.label) == ("atelectasis", "effusion")
    np.testing.assert_allclose([first.x, first.y, first.w, first.h], [0.5, 0.25, 0.25, 0.375], atol=0.03)
    assert [second.x, second.y, second.w, second.h] == list(typed.values())
    page.get_by_role("link", name="Use again").click()
    page.get_by_text("Box 2: Effusion").wait_for()
    generate(page)
    assert api.last.request["inputs"]["boxes"]["value"] == sent


def test_everything_works_with_the_keyboard_alone(page: Page, api: ByHand) -> None:
    page.goto(api.url)
    page.wait_for_selector(READY)

    def tab_to(selector: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert style == "solid", f"{selector}: no visible focus"
                return
        raise AssertionError(f"{selector} cannot be reached")

    tab_to("[name=model]")
    page.keyboard.press("ArrowDown")
    tab_to("[name=report]")
    page.keyboard.type("Clear lungs.")
    tab_to("#annotations > summary")
    page.keyboard.press("Enter")
    tab_to("#annotations .brush")
    for _ in range(8):
        page.keyboard.press("ArrowLeft")  # 12 to 4
    tab_to("#annotations canvas")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.down(" ")
    for _ in range(6):
        page.keyboard.press("ArrowUp")
    page.keyboard.up(" ")
    page.keyboard.press("Shift+ArrowUp")
    assert page.locator("#annotations .where").inner_text() == "Column 8, row 2"
    page.keyboard.press("Space")
    page.keyboard.press("Control+z")
    tab_to("#structure")
    tab_to("[type=submit]")
    page.keyboard.press("Enter")
    page.wait_for_url("**/generations/*")
    assert api.last.model == CONTROL
    assert api.last.request["inputs"]["report"] == {"value": "Clear lungs."}
    drawn = mask_of(api.files(api.last)["mask:left lung"])
    assert overlap(drawn, brushed(((8, 16), (8, 10)), width=4)) == 1
    api.done()
    page.get_by_role("heading", name="Results").wait_for()
    tab_to(".frame")
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("i")
    assert page.locator("[name=invert]").get_attribute("aria-pressed") == "true"
    until(page, "document.querySelector('.frame img').style.transform.includes('scale(1.3')")
    page.keyboard.press("r")
    until(page, "document.querySelector('.frame img').style.transform.startsWith('scale(1)')")
    tab_to("#samples a")


def test_errors_stand_at_the_field_or_at_the_top_in_the_api_s_words(page: Page, api: ByHand) -> None:
    open_form(page, api.url, CONTROL)
    page.get_by_label("Severity").fill("20")
    page.get_by_role("button", name="Generate").click()
    message = page.get_by_text("severity is 20, expected a number from 0 to 18")
    message.wait_for()
    field = page.get_by_label("Severity")
    assert field.get_attribute("aria-invalid") == "true"
    assert field.evaluate("field => field === document.activeElement")
    assert message.get_attribute("id") == field.get_attribute("aria-errormessage")
    field.fill("")
    page.get_by_role("checkbox", name="Frontal").uncheck()
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("no outputs were requested").wait_for()
    assert field.get_attribute("aria-invalid") is None
    assert not api.jobs
    page.goto(f"{api.url}/generations/none")
    page.locator("#problem").get_by_text("no request 'none'").wait_for()


def test_file_that_is_no_picture_is_refused_at_its_field(page: Page, api: ByHand, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture", encoding="utf-8")
    open_form(page, api.url)
    field = page.get_by_label("Frontal radiograph", exact=True)
    field.set_input_files(tmp_path / "notes.png")
    page.locator(".error", has_text="notes.png: ").wait_for()
    assert field.get_attribute("aria-invalid") == "true"


def test_progress_arrives_is_there_after_a_reload_and_ends_in_results(page: Page, api: ByHand) -> None:
    open_form(page, api.url)
    page.get_by_role("checkbox", name="Frontal").check()
    page.get_by_role("checkbox", name="Report").check()
    page.get_by_label("Samples", exact=True).fill("2")
    page.get_by_label("Seed", exact=True).fill("5")
    generate(page)
    page.get_by_text("Waiting, the next one").wait_for()
    api.step(2, 4)
    page.get_by_text("step 2 of 4").wait_for()
    assert page.get_by_label("Progress").evaluate("bar => bar.value / bar.max") == 0.5
    page.get_by_alt_text("Preview of frontal 1").wait_for()
    page.get_by_text(", unfinished: report 1").wait_for()
    page.reload()
    page.get_by_text("step 2 of 4").wait_for()
    page.get_by_alt_text("Preview of frontal 1").wait_for()
    api.done()
    page.get_by_role("heading", name="Results").wait_for()
    assert page.locator(".frame img").count() == 2
    assert page.locator("blockquote").all_inner_texts() == ["Clear.", "Clear."]
    captions = page.locator("figcaption:visible").all_inner_texts()
    assert len(captions) == 4
    assert all(text.startswith("Synthetic, ") for text in captions)
    page.get_by_text("Provenance").click()
    assert "5" in page.locator("dt:has-text('Seed') + dd").inner_text()
    assert not page.locator("#running").is_visible()


def test_cancel_and_failure(page: Page, api: ByHand) -> None:
    open_form(page, api.url, CONTROL)
    generate(page)
    api.step(1, 4)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled").wait_for()
    assert api.last.state == "cancelled"
    assert not page.get_by_role("button", name="Cancel").is_visible()
    page.get_by_role("link", name="Use again").click()
    page.wait_for_selector(READY)
    generate(page)
    api.fail("frontal is not finite: lower the guidance")
    page.get_by_role("alert").get_by_text("frontal is not finite: lower the guidance").wait_for()
    assert page.locator("#state").inner_text() == "Failed"


def test_lost_connection_is_said_and_mended(page: Page, api: ByHand) -> None:
    with served(make_app(api.server, page=True)) as url:
        open_form(page, url, CONTROL)
        generate(page)
        api.step(1, 4)
        page.get_by_text("step 1 of 4").wait_for()
    page.get_by_text("No connection to the server. Trying again.").wait_for()
    api.done()
    with served(make_app(api.server, page=True), int(url.rpartition(":")[2])):
        page.get_by_role("heading", name="Results").wait_for(timeout=20_000)
        assert not page.get_by_text("No connection").is_visible()
        page.goto("about:blank")


def test_token_is_asked_for(page: Page, tmp_path: Path, debug_checkpoint: Path) -> None:
    settings = Settings(tmp_path, models=(str(debug_checkpoint),))
    token = Server.open(settings).tokens.add("reader")
    with served(make_app(Server.open(settings), page=True)) as url:
        page.goto(url)
        page.get_by_role("alert").get_by_text("no valid token").wait_for()
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_selector(READY)
        until(page, "document.querySelector('[name=model]').value === 'random'")
        assert not page.get_by_label("Token").is_visible()


def shown_levels(page: Page) -> np.ndarray:
    """The red channel of the first picture on the screen, at the middle of each of its 256 columns."""
    with Image.open(io.BytesIO(page.locator(".frame").first.screenshot())) as image:
        levels = np.asarray(image.convert("RGB"))[..., 0].astype(int)
    assert levels.shape[1] == 512
    return levels[256, 1::2]


def test_window_and_level_are_exact(page: Page, api: ByHand) -> None:
    open_form(page, api.url, CONTROL)
    page.get_by_label("Samples", exact=True).fill("2")
    finished(page, api)
    page.evaluate("document.querySelector('#samples .columns').style.gridTemplateColumns = '512px'")
    grey = np.arange(256)
    np.testing.assert_array_equal(shown_levels(page), grey)
    page.get_by_role("slider", name="Window").fill("101")
    page.get_by_role("slider", name="Level").fill("60")
    expected = (((grey - 59.5) / 100 + 0.5) * 255).clip(0, 255)  # PS3.3 C.11.2.1.2.1
    assert np.abs(shown_levels(page) - expected).max() <= 1
    page.get_by_role("button", name="Invert").click()
    assert np.abs(shown_levels(page) - (255 - expected)).max() <= 1
    page.get_by_role("button", name="Reset").click()
    np.testing.assert_array_equal(shown_levels(page), grey)
    box = page.locator(".frame").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 100)
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + 150, box["y"] + 80)
    page.mouse.up(button="right")
    assert page.get_by_role("slider", name="Window").input_value() == "206"
    assert page.get_by_role("slider", name="Level").input_value() == "108"


def test_pictures_move_together_unless_they_are_unlinked(page: Page, api: ByHand) -> None:
    open_form(page, api.url, CONTROL)
    page.get_by_label("Samples", exact=True).fill("2")
    finished(page, api)
    places = "[...document.querySelectorAll('.frame img')].map(image => image.style.transform)"
    page.get_by_role("button", name="Zoom in").click()
    until(page, f"{places}.every(place => place.startsWith('scale(1.3'))")
    box = page.locator(".frame").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 130, box["y"] + 110)
    page.mouse.up()
    until(page, f"new Set({places}).size === 1 && !{places}[0].includes('(0px')")
    page.locator(".frame").first.hover()
    page.mouse.wheel(0, -100)
    until(page, f"new Set({places}).size === 1 && !{places}[0].startsWith('scale(1.3')")
    page.get_by_label("All pictures together").uncheck()
    page.locator(".frame").nth(1).focus()
    page.keyboard.press("+")
    until(page, f"new Set({places}).size === 2")
    page.get_by_role("slider", name="Window").fill("50")
    page.locator(".frame").first.focus()
    assert page.get_by_role("slider", name="Window").input_value() == "256"


def test_result_is_edited_within_an_area(page: Page, api: ByHand) -> None:
    open_form(page, api.url)
    page.get_by_role("textbox", name="Report").fill("Small heart.")
    page.get_by_role("checkbox", name="Frontal").check()
    page.get_by_role("checkbox", name="Lateral").check()
    page.get_by_label("Seed", exact=True).fill("5")
    finished(page, api)
    page.get_by_role("link", name="Edit lateral 1").click()
    page.get_by_alt_text("Lateral starts from, as the model sees it").wait_for()
    assert page.get_by_role("textbox", name="Report").input_value() == "Small heart."
    assert page.get_by_label("Seed", exact=True).input_value() == "5"
    page.get_by_label("Strength").fill("0.3")
    page.get_by_text("Change only an area of the lateral").click()
    board = "#edits .board"
    set_brush(page, board, 4)
    drag(page, board, (10, 10), (22, 10))
    generate(page)
    assert api.last.request["outputs"] == ["lateral"]
    assert api.last.request["options"] == {"strength": 0.3}
    assert api.last.seed == 5
    files = api.files(api.last)
    assert set(files) == {"image:lateral", "mask_image:lateral"}
    with Image.open(io.BytesIO(files["image:lateral"])) as image:
        np.testing.assert_array_equal(np.asarray(image)[0], np.arange(256))
    painted = mask_of(files["mask_image:lateral"])
    assert overlap(painted, brushed(((10, 10), (22, 10)), width=4)) > 0.95
    page.get_by_role("link", name="Use again").click()
    page.get_by_alt_text("Lateral starts from, as the model sees it").wait_for()
    page.locator("#edits details[open]").wait_for()
    generate(page)
    again = api.files(api.last)
    np.testing.assert_array_equal(mask_of(again["mask_image:lateral"]), painted)
    assert "image:lateral" in again


def test_history_reopens_uses_again_and_deletes(page: Page, api: ByHand, tmp_path: Path) -> None:
    file, _ = picture(tmp_path)
    open_form(page, api.url)
    page.get_by_label("Frontal radiograph", exact=True).set_input_files(file)
    page.get_by_alt_text("Frontal radiograph, as the model sees it").wait_for()
    page.get_by_role("checkbox", name="Report").check()
    page.get_by_label("Samples", exact=True).fill("3")
    finished(page, api)
    body, first = Body(outputs=["report"]), api.last.id
    latest = [api.server.requests.accept(body, {}, None).id for _ in range(21)][-1]
    page.get_by_role("link", name="History").click()
    page.get_by_role("button", name="Show earlier ones").click()
    until(page, "document.querySelectorAll('#list li').length === 22")
    page.locator("#list li").last.get_by_role("link", name="Use again").click()
    page.get_by_alt_text("Frontal radiograph, as the model sees it").wait_for()
    assert page.get_by_label("Samples", exact=True).input_value() == "3"
    assert page.get_by_role("checkbox", name="Report").is_checked()
    page.get_by_role("link", name="History").click()
    page.locator("#list li").nth(19).wait_for()
    delete = page.locator("#list li").first.get_by_role("button", name="Delete")
    delete.click()
    page.get_by_role("button", name="Keep").click()
    assert len(api.jobs) == 22
    delete.click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    until(page, "document.querySelectorAll('#list li').length === 19")
    assert latest not in {job.id for job in api.jobs}
    page.get_by_role("button", name="Show earlier ones").click()
    page.locator(f"#list a[href='/generations/{first}']").click()
    page.get_by_role("heading", name="Results").wait_for()
    page.get_by_role("button", name="Delete").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    page.get_by_role("heading", name="History").wait_for()
    assert first not in {job.id for job in api.jobs}


def test_request_is_used_again_with_its_files(page: Page, api: ByHand, tmp_path: Path) -> None:
    file, levels = picture(tmp_path, "start.png")
    Image.fromarray((levels > 45).astype(np.uint8) * 2).save(tmp_path / "labels.png")  # 2: the right lung
    boxes = [{"label": "nodule", "bbox": [0.1, 0.2, 0.3, 0.4]}]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes), encoding="utf-8")
    open_form(page, api.url, CONTROL)
    page.get_by_text("Masks and boxes").click()
    page.get_by_label("Mask from a file").set_input_files(tmp_path / "labels.png")
    page.get_by_label("Boxes from a file").set_input_files(tmp_path / "boxes.json")
    page.get_by_text("Start from a picture", exact=True).click()
    page.get_by_label("Frontal starts from", exact=True).set_input_files(file)
    page.get_by_alt_text("Frontal starts from, as the model sees it").wait_for()
    page.get_by_text("More options").click()
    page.get_by_role("combobox", name="Invert").select_option("true")
    generate(page)
    first = api.last
    sent = api.files(first)
    assert set(sent) == {"mask", "boxes", "image:frontal"}
    page.get_by_role("link", name="Use again").click()
    page.get_by_alt_text("Frontal starts from, as the model sees it").wait_for()
    generate(page)
    assert api.files(api.last) == sent
    assert api.last.request == first.request
    assert api.last.seed == first.seed
    given = {"demographics": {"sex": "F", "race": "white"}, "report": "Clear."}
    other = api.server.requests.accept(Body(inputs=given, outputs=["frontal"], model=CONTROL), {}, None)
    page.goto(f"{api.url}/?again={other.id}")
    page.get_by_text("Not taken over from the earlier request: demographics.").wait_for()
    assert page.get_by_role("textbox", name="Report").input_value() == "Clear."


def everything_open(page: Page) -> None:
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")


def each_page(page: Page, api: ByHand, tmp_path: Path) -> Iterator[str]:
    """Every page with all that it can show: the form for both models, a generation that runs and one that is done."""
    file, _ = picture(tmp_path)
    open_form(page, api.url)
    page.get_by_label("Lateral radiograph", exact=True).set_input_files(file)
    page.get_by_label("Frontal starts from", exact=True).set_input_files(file)
    page.get_by_alt_text("Frontal starts from, as the model sees it").wait_for(state="attached")
    everything_open(page)
    yield "form"
    open_form(page, api.url, CONTROL)
    everything_open(page)
    drag(page, "#annotations .board", (10, 10), (20, 20))
    page.get_by_role("button", name="Add a box").click()
    page.get_by_label("Severity").fill("20")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("severity is 20").wait_for()
    yield "annotations"
    page.get_by_label("Severity").fill("3")
    generate(page)
    api.step(2, 4)
    page.get_by_alt_text("Preview of frontal 1").wait_for()
    yield "running"
    api.done()
    page.get_by_role("heading", name="Results").wait_for()
    everything_open(page)
    yield "done"
    page.get_by_role("link", name="History").click()
    page.locator("#list li").first.wait_for()
    yield "history"


NAMED = {"button", "checkbox", "combobox", "link", "radio", "slider", "spinbutton", "switch", "textbox", "image", "img",
         "application", "progressbar", "dialog", "navigation"}  # fmt: skip


def test_pages_fit_a_phone_can_be_read_in_both_schemes_and_name_what_they_have(
    page: Page, api: ByHand, tmp_path: Path
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    audit = (Path(__file__).parent / "audit.js").read_text(encoding="utf-8")
    session = page.context.new_cdp_session(page)
    for where in each_page(page, api, tmp_path):
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, where
        schemes: tuple[Any, ...] = ("dark", "light")
        for scheme in schemes:
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(audit) == [], f"{where}, {scheme}"
        tree = session.send("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in tree if not node["ignored"]]
        roles = {node["nodeId"]: node.get("role", {}).get("value") for node in shown}
        assert {"main", "banner", "contentinfo", "navigation"} <= set(roles.values()), where
        for node in shown:
            named = node.get("name", {}).get("value", "").strip()
            assert named or roles[node["nodeId"]] not in NAMED, f"{where}: without a name: {json.dumps(node)}"
        headings = [node for node in shown if roles[node["nodeId"]] == "heading"]
        levels = [int(node["properties"][0]["value"]["value"]) for node in headings]
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels)), where
