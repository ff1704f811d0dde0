"""The page without a browser: what its routes answer, and that its templates and scripts keep to the rules."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from xgem.serve.app import make_app
from xgem.serve.page import page
from xgem.serve.settings import Settings
from xgem.serve.state import Server

STATIC, TEMPLATES = page.HERE / "static", page.HERE / "templates"


SIZE = 32


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, debug_checkpoint: Path) -> TestClient:
    settings = Settings(tmp_path_factory.mktemp("server"), models=(str(debug_checkpoint),))
    return TestClient(make_app(Server.open(settings), page=True))


class Elements(HTMLParser):
    """Every element with its attributes, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style") and data.strip():
            self.inline.append(data)


@pytest.mark.parametrize("path", ["/", "/generations", "/generations/g0"])
def test_pages_keep_to_the_policy_that_they_are_sent_with(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    elements = Elements(answer.text)
    assert not elements.inline
    for tag, attributes in elements.found:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert elements.found[0] == ("html", {"lang": "en"})
    assert "For research only." in answer.text
    for tag, attributes in elements.found:
        source = attributes.get("src") if tag == "script" else attributes.get("href") if tag == "link" else None
        if source and not source.startswith("data:"):
            assert client.get(source).status_code == 200, source


def test_ids_are_unique_and_labels_point_to_something(client: TestClient) -> None:
    for path in ("/", "/generations", "/generations/g0"):
        elements = Elements(client.get(path).text).found
        ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        keys = ("for", "aria-labelledby")
        named = [attributes[key] for _, attributes in elements for key in keys if key in attributes]
        assert set(named) <= set(ids)


def test_identifier_of_the_address_is_escaped(client: TestClient) -> None:
    text = client.get("/generations/%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E").text
    assert "<script>alert" not in text


def test_scripts_make_no_markup_from_text() -> None:
    files = sorted(STATIC.glob("*.js"))
    assert len(files) > 5
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|https?:(?!//www\.w3\.org)"
    )
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not forbidden.search(text), file.name
        assert len(text.splitlines()) <= 400


def test_every_import_of_the_scripts_exists() -> None:
    for file in STATIC.glob("*.js"):
        text = file.read_text(encoding="utf-8")
        found = re.findall(r'^import \{([^}]+)\} from "\./(.+)";', text, re.MULTILINE)
        assert len(found) == text.count("\nimport ")
        for names, source in found:
            exported = (STATIC / source).read_text(encoding="utf-8")
            for name in names.replace(",", " ").split():
                pattern = rf"^export (async )?(const|function|class) {re.escape(name)}\W"
                assert re.search(pattern, exported, re.MULTILINE), f"{file.name}: {name}"


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def look(client: TestClient, name: str, data: bytes, **fields: str) -> Any:
    files, data_of = {"file": (name, data)}, {"view": "frontal", "model": "random", **fields}
    return client.post("/page/picture", files=files, data=data_of)


def test_picture_is_shown_as_the_model_sees_it(client: TestClient) -> None:
    wide = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))  # (32, 64): padded above and below
    answer = look(client, "wide.png", png(wide))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    seen = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert seen.shape == (SIZE, SIZE)
    assert not seen[: SIZE // 4 - 1].any()
    rows = seen[SIZE // 4 + 1 : -SIZE // 4 - 1].astype(int)
    assert np.abs(rows - wide.reshape(32, SIZE, 2).mean(axis=(0, 2)).round()).max() <= 1
    inverted = look(client, "wide.png", png(wide), reading='{"invert": true}')
    assert (
        np.abs(np.asarray(Image.open(io.BytesIO(inverted.content)))[SIZE // 2].astype(int) - 255 + rows[0]).max() <= 1
    )


@pytest.mark.parametrize(
    ("name", "data", "fields", "begins"),
    [
        ("../notes.png", b"no picture", {}, "notes.png: "),
        ("a.png", b"", {"reading": '{"colour": 1}'}, "reading is "),
        ("a.png", b"", {"view": "mask"}, "a.png: random has no 'mask'"),
        ("a.png", b"", {"model": "other"}, "model 'other' is not offered"),
    ],
)
def test_picture_that_cannot_be_used_is_refused_in_a_line(
    client: TestClient, name: str, data: bytes, fields: dict[str, str], begins: str
) -> None:
    answer = look(client, name, data, **fields)
    assert answer.status_code == 422
    line = answer.json()["error"]
    assert line.startswith(begins)
    assert "\n" not in line
    assert "/" not in line


def test_pages_are_open_and_pictures_need_the_token(tmp_path: Path, debug_checkpoint: Path) -> None:
    settings = Settings(tmp_path, models=(str(debug_checkpoint),))
    token = Server.open(settings).tokens.add("reader")
    guarded = TestClient(make_app(Server.open(settings), page=True))
    assert guarded.get("/").status_code == 200
    assert look(guarded, "a.png", b"").status_code == 401
    assert guarded.get("/login", params={"token": token}).status_code == 200
    assert look(guarded, "a.png", b"").status_code == 422


def test_examples_are_short_sentences() -> None:
    assert len({name for name, _ in page.EXAMPLES}) == len(page.EXAMPLES)
    assert all(text.endswith(".") and len(text) < 120 for _, text in page.EXAMPLES)


def test_templates_are_all_used() -> None:
    used = "".join(file.read_text(encoding="utf-8") for file in (*TEMPLATES.glob("*"), Path(page.__file__)))
    assert all(file.name in used for file in TEMPLATES.glob("*"))
