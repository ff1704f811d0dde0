"""Pages of the documentation that are written by the code: model cards, project files, the command line's help."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PROJECT = Path(__file__).resolve().parent.parent
PAGES = {
    "models/openi-256.md": "xgem/assets/openi-256/README.md",
    "models/chexgen-small.md": "xgem/assets/chexgen-small/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Page -> file of the project that it shows."""
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lists the decision records in the navigation, where ``adr/`` stands."""
    titles = {page: _title(page) for page in sorted((PROJECT / "docs" / "adr").glob("*.md"))}
    decisions = [{title: f"adr/{page.name}"} for page, title in titles.items()]
    for section in config.nav or ():
        for entries in section.values():
            for entry in entries if isinstance(entries, list) else ():
                for name, target in entry.items():
                    if target == "adr/":
                        entry[name] = decisions
    return config


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages whose text lies elsewhere in the project."""
    for page, source in PAGES.items():
        text = (PROJECT / source).read_text(encoding="utf-8")
        text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # a card's header is for model hubs
        files.append(File.generated(config, page, content=_relinked(text, source, page)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Writes what the code knows (help of the commands, options, metrics) where a page asks for it."""
    for mark, write in WRITERS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, write())
    return markdown


def command_line() -> str:
    """The help of all commands as Markdown, as ``typer xgem.cli utils docs`` gives it."""
    import typer.cli
    import typer.main

    from xgem.cli import app

    command: Any = typer.main.get_command(app)
    context: Any = command.context_class(command, info_name="xgem")
    text = typer.cli.get_docs_for_click(obj=command, ctx=context, name="xgem")
    return text.split("\n", 1)[1]  # the page has a title of its own


def metric_table() -> str:
    """Every metric of the registry, by family."""
    from xgem.eval.registry import as_markdown

    return as_markdown()


def option_table() -> str:
    """Every option of a request."""
    from xgem.pipeline.options import CallOptions, Option

    rows = []
    for name, field in CallOptions.model_fields.items():
        option = next(part for part in field.metadata if isinstance(part, Option))
        default = (option.unset or "none") if field.default is None else f"`{field.default!r}`"
        rows.append((f"`{name}`", option.help, str(option.limits or ""), default))
    return _table(("option", "what", "accepts", "default"), rows)


def control_measures() -> str:
    """The measures in the card of the model with control."""
    card = (PROJECT / PAGES["models/chexgen-small.md"]).read_text(encoding="utf-8")
    return card.split("\n## Results\n", 1)[1].strip()


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


WRITERS = {
    "<!-- commands -->": command_line,
    "<!-- metrics -->": metric_table,
    "<!-- options -->": option_table,
    "<!-- measures of chexgen-small -->": control_measures,
}
"""What stands in a page -> what writes the text in its place."""


def _relinked(text: str, source: str, page: str) -> str:
    """``text`` with its links to other pages as they are from ``page``."""
    shown = {target: name for name, target in PAGES.items()}

    def relink(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        name = shown.get(target, target.removeprefix("docs/"))
        return os.path.relpath(name, posixpath.dirname(page) or ".")

    return _LINK.sub(relink, text)
