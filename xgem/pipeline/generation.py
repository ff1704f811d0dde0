"""The result of a request: samples, their provenance, and how both are written and read back.

Every written output is marked as synthetic and contains what a replay needs: seed, checkpoint hash, hashes of the
inputs, options (see ``replay``). Input reports are stored as text; of input images, only hash and file name.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final, cast, get_args

from xgem.data.headers import is_dicom
from xgem.dicom.stored import metadata_text
from xgem.pipeline.options import Format
from xgem.types import InputError, OutputError
from xgem.utils.files import check_output_folder, file_sha256, new_file_mode

RECORD_NAME: Final = "generation.json"
PNG_KEY: Final = "xgem"
REPORT_ENDINGS: Final = (".txt", ".json")

_Mapping = Mapping[str, Any]


def _no_samples() -> dict[str, list[dict[str, Any]]]:
    return {}


@dataclass(frozen=True, repr=False)
class Generation:
    """The samples of one request, by output.

    ``outputs`` maps each modality to its samples: images as PIL images (mode "L"), arrays or tensors, depending on
    ``output_type``; reports as text. They are attributes too: ``generation.lateral[0]``. ``metadata`` is common to all
    samples, as JSON values; ``samples`` adds to it for each sample, in the order of ``outputs``. ``annotations`` are
    those that the samples follow, by modality, on the samples' own grid. ``files`` are the inputs' files, by modality.
    """

    outputs: Mapping[str, Sequence[Any]]
    metadata: _Mapping
    samples: Mapping[str, Sequence[_Mapping]] = field(default_factory=_no_samples)
    annotations: _Mapping = field(default_factory=dict[str, Any])
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])

    def __getattr__(self, name: str) -> Sequence[Any]:
        outputs = cast(Mapping[str, Sequence[Any]], self.__dict__.get("outputs", {}))
        if name in outputs:
            return outputs[name]
        raise AttributeError(f"the generation has no output {name!r}, only: {', '.join(outputs)}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.outputs})

    def __repr__(self) -> str:
        parts = [f"{name}: {_described(samples)}" for name, samples in self.outputs.items()]
        return f"Generation({'; '.join(parts)}; seed {self.metadata.get('seed')})"

    def _repr_html_(self) -> str:
        """For notebooks: images and texts, marked as synthetic."""
        shown: list[str] = []
        for name, samples in self.outputs.items():
            for index, sample in enumerate(samples):
                image = _as_png(sample)
                if image is None:
                    text = sample if isinstance(sample, str) else _described([sample])
                    shown.append(f"<p><b>{escape(name)}</b>: {escape(text)}</p>")
                else:
                    source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
                    shown.append(f'<img src="{source}" alt="{escape(name)} {index}" title="{escape(name)} {index}">')
        return f"<div>{''.join(shown)}<p>Synthetic, seed {self.metadata.get('seed')}.</p></div>"

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def sample_metadata(self, output: str, index: int = 0) -> dict[str, Any]:
        """All metadata of one sample, as JSON values, as written into its file."""
        of_sample = self.samples[output][index] if output in self.samples else {"output": output, "sample": index}
        return {**self.metadata, **of_sample}

    def _stem(self, output: str, index: int, metadata: _Mapping) -> str:
        """A sample's file name without its ending; of a replayed one, the name that it had."""
        several = max(len(self.outputs[output]), int(metadata.get("num_samples", 1))) > 1
        return f"{output}-{int(metadata.get('sample', index)):03d}" if several else output

    def save(
        self,
        directory: str | Path,
        *,
        overwrite: bool = False,
        format: Format = "png",
        keep_patient: bool = False,
    ) -> list[Path]:
        """Write every sample and ``generation.json`` into ``directory``, all of them or none.

        An image is written as ``lateral.png``, a report as ``report.txt`` with ``report.json``; several samples as
        ``lateral-000.png``, ``lateral-001.png``. Annotations are written next to each, in their own formats
        (``frontal.mask.png``, ``frontal.boxes.json``), so that the pair can be used for training.

        Args:
            directory: new or empty.
            overwrite: replace the files of an earlier generation; other files in the folder are left alone.
            format: ``"dicom"`` writes ``lateral.dcm``, ``report.dcm``, ``frontal.mask.dcm`` instead: of each index one
                study with a series for each object (the extra ``dicom``).
            keep_patient: take over the patient of the DICOM file among the inputs.

        Returns:
            The samples' files.

        Raises:
            OutputError: the folder is in use (without ``overwrite``) or cannot be written.
            InputError: an unknown format, or ``keep_patient`` without DICOM among inputs and results.
        """
        patient = self._patient(format, keep_patient)
        directory = check_output_folder(directory, overwrite=overwrite)
        temporary: Path | None = None
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
            files: dict[str, list[dict[str, Any]]] = {}
            for output, samples in self.outputs.items():
                for index in range(len(samples)):
                    written, *beside = self.write_sample(output, index, temporary, format=format, patient=patient)
                    of_sample = self.samples[output][index] if output in self.samples else {}
                    entry = {**of_sample, "file": written.name, "sha256": file_sha256(written)}
                    if beside:
                        entry["annotations"] = [path.name for path in beside]
                    files.setdefault(output, []).append(entry)
            record = {**self.metadata, "files": files}
            text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            (temporary / RECORD_NAME).write_text(text, encoding="utf-8")
            _publish(temporary, directory)
        except OSError as error:
            raise OutputError(f"{directory}: cannot be written ({error.strerror or error})") from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return [directory / entry["file"] for entries in files.values() for entry in entries]

    def write_sample(
        self,
        output: str,
        index: int,
        directory: Path,
        *,
        format: Format = "png",
        patient: Mapping[str, str] | None = None,
    ) -> list[Path]:
        """Write one sample and its annotations into a folder that exists; the sample's own file comes first.

        ``patient``: attributes of DICOM's patient module by keyword, in place of the synthetic patient.
        """
        from xgem.modalities import get_modality

        modality, sample = get_modality(output), self.outputs[output][index]
        metadata = self.sample_metadata(output, index)
        stem = self._stem(output, index, metadata)
        if format == "png":
            written = [modality.write(sample, directory, stem, metadata)]
            written += [
                get_modality(name).write(value, directory, stem, metadata) for name, value in self.annotations.items()
            ]
            return [path for path in written if path is not None]
        from xgem.dicom.identity import Identity

        identity = Identity(metadata, patient or {})
        image = modality.to_dicom(sample, identity)
        objects = [(f"{stem}.dcm", image)]
        for name, value in self.annotations.items() if modality.is_image else ():
            known = get_modality(name)
            objects.append((dicom_name(stem, known.suffix), known.to_dicom(value, identity, image)))
        made = [(directory / name, ds) for name, ds in objects if ds is not None]  # of a severity there is none
        for path, ds in made:
            ds.save_as(path, enforce_file_format=True)
        return [path for path, _ in made]

    def _patient(self, format: str, keep: bool) -> dict[str, str]:
        """The patient to keep; InputError where that, or the format, is not possible."""
        if format not in get_args(Format):
            raise InputError(f"format is {format!r}, expected one of: {', '.join(get_args(Format))}")
        if not keep:
            return {}
        if format != "dicom":
            raise InputError("keep_patient is of DICOM files; give format dicom (--format dicom) too")
        from xgem.dicom.patient import patient_of

        return patient_of(self.files.values())


def dicom_name(stem: str, suffix: str) -> str:
    """The DICOM file of an annotation that is otherwise written with ``suffix``: ``frontal.mask.dcm``."""
    return Path(f"{stem}{suffix}").with_suffix(".dcm").name


def _described(samples: Sequence[Any]) -> str:
    """``2 images 128 x 128``, ``'No acute disease.'``, ``1 tensor (4, 16, 16)``."""
    first = samples[0]
    if isinstance(first, str):
        shown = repr(first if len(first) <= 60 else f"{first[:57]}...")
        return shown if len(samples) == 1 else f"{len(samples)} texts, first {shown}"
    size = getattr(first, "size", None)
    if isinstance(size, tuple):  # a PIL image
        return f"{len(samples)} image{'s' * (len(samples) > 1)} {size[0]} x {size[1]}"
    kind = "array" if type(first).__name__ == "ndarray" else "tensor"
    return f"{len(samples)} {kind}{'s' * (len(samples) > 1)} {tuple(first.shape)}"


def _as_png(sample: Any) -> bytes | None:
    """An image of any output type as PNG; None for texts and latents."""
    import numpy as np
    from PIL import Image

    if isinstance(sample, str):
        return None
    if not isinstance(sample, Image.Image):
        array = np.asarray(sample)
        if array.ndim not in (2, 3) or (array.ndim == 3 and len(array) > 1):
            return None
        sample = Image.fromarray(np.rint(array.reshape(array.shape[-2:]) * 255).astype(np.uint8))
    file = io.BytesIO()
    sample.save(file, "png")
    return file.getvalue()


def _publish(temporary: Path, directory: Path) -> None:
    """Move finished results into place: in one rename where the folder is new, file by file where it is not."""
    for path in temporary.iterdir():
        path.chmod(new_file_mode(0o666))
    temporary.chmod(new_file_mode(0o777))
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
    if not directory.exists():
        temporary.replace(directory)
        return
    stale = _recorded_files(directory)
    # The record goes last: every file that it lists is complete.
    names = sorted((path.name for path in temporary.iterdir()), key=lambda name: (name == RECORD_NAME, name))
    for name in names:
        (temporary / name).replace(directory / name)
    for name in stale - set(names):
        (directory / name).unlink(missing_ok=True)


def _recorded_files(directory: Path) -> set[str]:
    """Files (and reports' sidecars) of the generation in ``directory``, plain names only."""
    try:
        record = json.loads((directory / RECORD_NAME).read_text(encoding="utf-8"))
        if record.get("synthetic") is not True:
            return set()
        entries = [entry for samples in record["files"].values() for entry in samples]
        names = {str(name) for entry in entries for name in (entry["file"], *entry.get("annotations", ()))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()  # not xgem's, or damaged: remove nothing
    plain = {name for name in names if Path(name).name == name}
    return plain | {Path(name).with_suffix(".json").name for name in plain}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata of a generated file: from the PNG or DICOM file itself, or from the JSON file next to a report.

    Raises:
        InputError: no such file, or one without xgem's metadata.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a PNG, report or DICOM file written by xgem")
    if path.suffix.lower() in REPORT_ENDINGS:
        text = _read_text(path.with_suffix(".json"))
    elif is_dicom(path):
        text = metadata_text(path)
    else:
        text = _png_text(path)
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: its metadata is not JSON: damaged, or not written by xgem") from error
    if not isinstance(values, dict) or "output" not in values or "seed" not in values:
        raise InputError(f"{path}: has no metadata of a generated sample, expected a file written by xgem")
    return cast(dict[str, Any], values)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read; a report's metadata is in the .json file next to it") from error


def _png_text(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(PNG_KEY)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: not a readable PNG; expected one written by xgem") from error
    if text is None:
        raise InputError(f"{path}: contains no xgem metadata: not written by xgem, or saved again by other software")
    return str(text)
