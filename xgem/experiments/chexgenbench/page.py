"""A table of the benchmark with the paper's rows, and the page of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from xgem._version import __version__
from xgem.utils.tables import markdown_table

TEMPLATE: Final = "page.html.jinja"


@dataclass(frozen=True)
class Table:
    """A table: its title, heads and rows; ``published`` are the paper's rows in the same columns."""

    stem: str
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]
    published: Sequence[Sequence[Any]] = ()
    note: str = ""

    def markdown(self) -> str:
        """With the paper's rows below, in italics."""
        below = [[f"*{row[0]} (paper)*", *row[1:]] for row in self.published]
        table = markdown_table(self.heads, [[shown(cell) for cell in row] for row in (*self.rows, *below)])
        return "\n\n".join(part for part in (f"## {self.title}", self.note, table) if part)


def shown(cell: Any) -> str:
    """A cell as text, numbers with four significant digits."""
    return "" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def page(
    title: str,
    head: str,
    tables: Sequence[Table],
    links: Sequence[tuple[str, str]],
    missing: Sequence[str],
    warning: str = "",
) -> str:
    """The tables as one HTML document, with links to the reports of the parts and what was not computed.

    ``warning`` stands above everything.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("xgem.experiments.chexgenbench", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    return environment.get_template(TEMPLATE).render(
        title=title, head=head, version=__version__, tables=tables, links=links, missing=missing, warning=warning
    )
