"""The documentation builds without warnings, and its examples, notebooks and links work.

Python and bash blocks of ``docs`` are marked and tested as README's are (``tests/test_readme.py``).
"""

from __future__ import annotations

import json
import logging
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.test_readme import BLOCKS as README_BLOCKS
from tests.test_readme import Block, blocks_of, check_long_command, each, execute, folder

__all__ = ["folder"]

PROJECT = Path(__file__).resolve().parent.parent
DOCS = PROJECT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "cards" not in path.parts and "adr" not in path.parts)
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
README_LINES = 150
IMAGE_BYTES = 400_000
LINK = re.compile(r"(?<!`)\[[^\]\[]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
needs_docs = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter")),
    reason="needs the extra docs",
)


BLOCKS = [block for block in blocks_of(*PAGES) if block.language in {"python", "bash"}]
OWN = [block for block in BLOCKS if block.code not in {one.code for one in README_BLOCKS}]


@each(BLOCKS)
def test_every_example_of_docs_is_tested(block: Block) -> None:
    assert block.mark in {"run", "dry-run"}
    assert (block.language, block.mark) != ("python", "dry-run")


@each(OWN, "run", "python")
def test_python_example_of_docs_runs(block: Block, folder: Path) -> None:
    execute(["python", "-c", block.code], folder)


@each(OWN, "run", "bash")
def test_shell_example_of_docs_runs(block: Block, folder: Path) -> None:
    execute(["bash", "-euo", "pipefail", "-c", block.code], folder)


@each(OWN, "dry-run", "bash")
def test_long_command_of_docs_is_one_that_exists(block: Block, tmp_path: Path) -> None:
    check_long_command(block, tmp_path)


@needs_docs
def test_site_builds_without_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What ``mkdocs build --strict`` does, in this process, so that every warning can be shown."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    site = tmp_path / "site"
    with caplog.at_level(logging.WARNING):
        config = load_config(str(PROJECT / "mkdocs.yml"), site_dir=str(site))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert not warnings, "\n".join(warnings)
    assert "openi-256" in (site / "models" / "openi-256.html").read_text(encoding="utf-8")
    assert "--num-inference-steps" in (site / "command-line.html").read_text(encoding="utf-8")
    assert "doc-heading" in (site / "reference" / "metrics.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [PROJECT / "README.md", *PAGES], ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_to_files(path: Path) -> None:
    """Pages that the build writes (model cards, project files) count as their sources."""
    from docs.hooks import PAGES as WRITTEN

    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    broken = []
    for target in LINK.findall(text):
        file = target.partition("#")[0]
        if ":" in target or not file:
            continue
        found = (path.parent / file).resolve()
        written = found.is_relative_to(DOCS) and found.relative_to(DOCS).as_posix() in WRITTEN
        if not found.exists() and not written:
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_navigation() -> None:
    text = (PROJECT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [page for page in PAGES if page.relative_to(DOCS).as_posix() not in text]
    assert not missing


def test_readme_is_short() -> None:
    lines = (PROJECT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES
    assert max(map(len, lines)) < 300


def test_results_page_has_a_marked_place() -> None:
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    assert text.count("<!-- results:begin -->") == text.count("<!-- results:end -->") == 1
    assert text.index("<!-- results:begin -->") < text.index("<!-- results:end -->")


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+\.\d+", text))


def test_numbers_of_readme_stand_in_the_results() -> None:
    """README's table repeats measured numbers: each stands in the results or in a model card, none is made up."""
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    begin = readme.index("## Results")
    table = [line for line in readme[begin:].split("\n## ", 1)[0].splitlines() if line.startswith("|")]
    assert len(table) >= 8  # a head, a rule and six rows
    shown = numbers("\n".join(table))
    assert shown
    cards = sorted((PROJECT / "xgem" / "assets").glob("*/README.md"))
    measured = [path.read_text(encoding="utf-8") for path in (DOCS / "results.md", *cards)]
    assert shown <= set().union(*map(numbers, measured))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_stores_no_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert not any(cell.get("attachments") for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, folder: Path) -> None:
    """Its cells one after the other, without a kernel."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    execute(["python", "-c", code], folder)


def test_citation_file_names_what_citing_names() -> None:
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    import xgem

    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == xgem.__version__
    page = (DOCS / "citing.md").read_text(encoding="utf-8").lower().replace("{", "").replace("}", "")
    page = " ".join(page.split())
    for reference in citation["references"]:
        assert reference["title"].lower() in page
        assert reference["authors"][0]["family-names"].lower() in page
        assert str(reference["year"]) in page
        assert all(one["value"].removeprefix("arXiv:") in page for one in reference.get("identifiers", ()))


def test_images_of_docs_are_small_and_marked() -> None:
    from PIL import Image

    images = [path for path in (DOCS / "images").iterdir() if path.suffix != ".svg"]
    assert images
    for path in images:
        assert path.stat().st_size < IMAGE_BYTES
        with Image.open(path) as image:
            assert image.info.get("Synthetic") == "true", f"{path.name}: not marked as synthetic"
