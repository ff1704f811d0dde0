"""The structure of the package in figures: ``python benchmarks/structure.py [CHECKOUT]`` (this one by default).

Arrows are imports between the children of a package, counted once a pair; lazy imports inside functions and imports for
type checkers count too. Upward imports are those whose removal leaves no circle (grimp's ``nominate_cycle_breakers``).
"""

from __future__ import annotations

import ast
import json
import sys
import tokenize
from pathlib import Path
from typing import Any

import grimp


def packages_of(graph: grimp.ImportGraph, root: str) -> list[str]:
    """The package and all packages inside it."""
    return [root, *sorted(name for name in graph.find_descendants(root) if graph.find_children(name))]


def function_lengths(file: Path) -> list[tuple[str, int]]:
    """Name and lines of each function of a file, decorators not counted."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(node.name, int(node.end_lineno or node.lineno) - node.lineno + 1) for node in functions]


def comment_lines(file: Path) -> int:
    """Lines that hold a comment."""
    with file.open("rb") as stream:
        return sum(token.type == tokenize.COMMENT for token in tokenize.tokenize(stream.readline))


def measure(folder: Path, package: str = "xgem") -> dict[str, Any]:
    """Lines, files, arrows, upward imports and circles of the package in ``folder``."""
    sys.path.insert(0, str(folder))
    try:
        graph = grimp.build_graph(package, cache_dir=None)
    finally:
        sys.path.remove(str(folder))
    files = sorted((folder / package).rglob("*.py"))
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    functions = [length for file in files for _, length in function_lengths(file)]
    arrows, circles, upward = 0, 0, 0
    for parent in packages_of(graph, package):
        children = sorted(graph.find_children(parent))
        for source in children:
            for target in children:
                if source != target and graph.direct_import_exists(imported=target, importer=source, as_packages=True):
                    arrows += 1
        breakers = graph.nominate_cycle_breakers(parent)
        upward += len(breakers)
        circles += bool(breakers)
    return {
        "lines": sum(lines.values()),
        "files": len(files),
        "packages": len(packages_of(graph, package)),
        "loose modules at the root": sum(file.parent == folder / package for file in files),
        "longest file": max(lines.values()),
        "files over 400 lines": sum(count > 400 for count in lines.values()),
        "longest function": max(functions),
        "functions over 80 lines": sum(length > 80 for length in functions),
        "comments, percent of lines": round(100 * sum(map(comment_lines, files)) / sum(lines.values()), 1),
        "arrows": arrows,
        "upward imports": upward,
        "packages with a circle": circles,
    }


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    print(json.dumps(measure(where.resolve()), indent=2))
