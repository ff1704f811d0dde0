"""Radiology reports: text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgem.configs.preset import Preset
from xgem.data.study import Study, report_of
from xgem.labels.sentences import plain_characters, unwrapped
from xgem.modalities.base import Modality, OutputType
from xgem.types import InputError, Prompt

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from xgem.dicom.identity import Identity


class Report(Modality):
    """A report: text throughout."""

    name = "report"
    suffix = ".txt"

    def read(self, value: Any, preset: Preset, *, allow_any: bool = False) -> Prompt:
        """Text with plain characters (quotes, ligatures, soft hyphens) and white space collapsed.

        Raises:
            InputError: no text, empty, or without a letter or digit.
        """
        del preset, allow_any
        if not isinstance(value, str):
            raise InputError(f"report: expected text, got {type(value).__name__}")
        text = " ".join(unwrapped(plain_characters(value)).split())
        if not any(character.isalnum() for character in text):
            raise InputError(f"report: expected text, got {value[:20]!r}: leave the report out to generate without it")
        return Prompt(text, hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(), "text", text=text)

    def of_study(self, study: Study, sections: Sequence[str]) -> str | None:
        """The sections, joined; None where they say nothing."""
        text = report_of(study, sections)
        return text if any(map(str.isalnum, text)) else None

    def collate(self, values: Sequence[str]) -> list[str]:
        return list(values)

    def to_output(self, batch: list[str], output_type: OutputType) -> list[str]:
        """Text whatever the ``output_type``."""
        del output_type
        return list(batch)

    def write(self, output: str, directory: Path, stem: str, metadata: Mapping[str, Any]) -> Path:
        """The text, with its metadata in a JSON file beside it."""
        output = self._text(output)
        path = directory / f"{stem}{self.suffix}"
        path.write_text(output + "\n", encoding="utf-8")
        path.with_suffix(".json").write_text(
            json.dumps(dict(metadata), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        return path

    def to_dicom(self, output: str, identity: Identity, image: Dataset | None = None) -> Dataset:
        """A structured report of its sections."""
        from xgem.dicom.documents import text_report

        del image
        return text_report(self._text(output), identity)

    @staticmethod
    def _text(output: Any) -> str:
        if not isinstance(output, str):
            raise InputError(f"report: expected text to write, got a {type(output).__name__}; decode latents first")
        return output
