"""YAML as plain values, for presets, plans and settings: a key that stands twice is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from xgem.types import ConfigError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which of two equal keys keeps the last in silence, with an error instead.

    Keys are compared where they are written; those that come by a merge (``<<``) may be overridden.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = (key.tag, key.value)
            if name in first:
                problem = f"duplicate key {key.value!r} (first on line {first[name]}): keep one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            first[name] = key.start_mark.line + 1
        return node


def parse_yaml(text: str, origin: str) -> Any:
    """The values of a YAML document.

    Raises:
        ConfigError: not YAML, or a key stands twice in one mapping; names ``origin`` and the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise ConfigError(f"{origin}: not valid YAML: {where}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that does not exist
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: str | Path) -> Any:
    """The values of a YAML file.

    Raises:
        ConfigError: no such file, not text in UTF-8, or as :func:`parse_yaml`.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: expected a file in YAML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}): expected YAML in UTF-8") from None
    return parse_yaml(text, str(path))
