"""From what a client sends to a request in the queue: everything is checked before anything is accepted."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xgem.api import model_for
from xgem.checkpoints.locate import locate
from xgem.data.read import sniff
from xgem.labels.views import VIEWS
from xgem.modalities import MODALITIES
from xgem.pipeline.options import CallOptions, option, renamed
from xgem.pipeline.pipeline import XgemPipeline
from xgem.serve.queue import New, Queue
from xgem.serve.reading import check_readable
from xgem.types import InputError

if TYPE_CHECKING:
    from xgem.serve.settings import Settings
    from xgem.serve.tables import Job

SERVER_DECIDES: Final = ("device", "dtype", "progress", "batch_size")
STARTS: Final = ("image", "mask_image")
"""Options that are files, by output."""
OPTIONS: Final = tuple(
    name for name in CallOptions.model_fields if option(name).command_line and name not in (*SERVER_DECIDES, *STARTS)
)
"""Options that a request may have as values."""
FILES: Final = (*VIEWS, "report", "mask", "boxes")
"""Inputs that may be files."""
MOST_TEXT: Final = 20_000
_ENDINGS: Final = {"dicom": ".dcm", "npy": ".npy"}
_MAGIC: Final = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"II*\x00": ".tif", b"MM\x00*": ".tif"}


class Body(BaseModel):
    """The JSON of a request. ``model`` None: by the inputs, as on the command line."""

    model_config = ConfigDict(extra="forbid")

    inputs: dict[str, Any] = Field(default_factory=dict, description="By modality: text, numbers, boxes as JSON.")
    outputs: list[str] = Field(max_length=16, description="Modalities to generate.")
    options: dict[str, Any] = Field(default_factory=dict, description="As in GET /api/options.")
    image: dict[str, Any] = Field(default_factory=dict, description="By output: what it starts from.")
    mask_image: dict[str, Any] = Field(default_factory=dict, description="By output: where that may change (white).")
    model: str | None = Field(default=None, max_length=200, description="One of GET /api/checkpoints.")

    def files(self) -> dict[str, bytes]:
        """Takes the files out of the JSON, ``{"base64": "..."}``, by the names of form fields."""
        found: dict[str, bytes] = {}
        for prefix, values in (("", self.inputs), *((f"{kind}:", getattr(self, kind)) for kind in STARTS)):
            for name in [name for name, value in values.items() if isinstance(value, dict) and "base64" in value]:
                try:
                    found[f"{prefix}{name}"] = base64.b64decode(values.pop(name)["base64"], validate=True)
                except (ValueError, TypeError):
                    raise InputError(f"{prefix}{name[:80]}: not valid base64") from None
        return found

    @classmethod
    def parse(cls, text: str | bytes) -> Body:
        """From JSON; InputError where it is none, or of another form."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"request: {f'{where}: ' if where else ''}{first['msg']}") from None


class Models:
    """The checkpoints that a server offers, opened, without their weights."""

    def __init__(self, settings: Settings) -> None:
        self.opened: dict[str, XgemPipeline] = {}
        for given in settings.models:
            pipeline = XgemPipeline(locate(given), device="cpu")
            if pipeline.name in self.opened:
                raise InputError(f"model {given!r}: a second checkpoint called {pipeline.name!r}; rename its folder")
            self.opened[pipeline.name] = pipeline

    def for_request(self, name: str | None, inputs: Mapping[str, Any]) -> XgemPipeline:
        """The one that is named, or the default for these inputs.

        Raises:
            InputError: the server does not offer it.
        """
        if name is None:
            able = [one for one, pipeline in self.opened.items() if inputs.keys() <= pipeline.preset.modalities.keys()]
            by_inputs = model_for(inputs)
            name = by_inputs if by_inputs in self.opened else next(iter(able or self.opened))
        if name not in self.opened:
            raise InputError(f"model {name[:80]!r} is not offered here, expected one of: {', '.join(self.opened)}")
        return self.opened[name]


class Requests:
    """Accepts requests into the queue."""

    def __init__(self, settings: Settings, models: Models, queue: Queue) -> None:
        self.settings, self.models, self.queue = settings, models, queue

    def accept(self, body: Body, files: Mapping[str, bytes], owner: int | None) -> Job:
        """Check a request, keep its files, and queue it.

        Args:
            body: its JSON.
            files: by field: ``frontal``, ``mask``, ``mask:<structure>``, ``image:<output>``, ``mask_image:<output>``
            owner: the token's id.

        Raises:
            InputError: it cannot be generated as it is; nothing is kept.
        """
        _check_length({**body.inputs, **body.image, **body.mask_image})
        identifier = uuid.uuid4().hex
        folder = self.settings.inputs(identifier)
        stored = _placed(files)
        for kind in stored:
            values: dict[str, Any] = getattr(body, kind)
            for name, value in values.items():
                if name in stored[kind]:
                    raise InputError(f"{name[:80]!r} is given twice, as a file and in the request")
                stored[kind][name] = {"value": _plain("mask" if kind == "mask_image" else name, value)}
        inputs, starts = opened(stored, folder)
        pipeline = self.models.for_request(body.model, inputs)
        options = self._options(body.options)
        request = pipeline.checked(inputs, body.outputs, options.replaced(**starts))
        try:
            folder.mkdir(parents=True)
            for field, data in files.items():
                (folder / _file_of(field, data)).write_bytes(data)
            self._read(pipeline, inputs, starts, options, folder, in_process=not files)
            seed = secrets.randbelow(2**32) if options.seed is None else request.seeds[0]
            given = {name: getattr(options, name) for name in body.options if name != "seed"}
            # A request with a seed of its own is sampled alone, so that it gives the same pixels as anywhere else.
            shape = identifier if options.seed is not None else _shape(pipeline, body, stored, given)
            shown = {
                "inputs": _shown(stored),
                **{kind: sorted(stored[kind]) for kind in STARTS},
                "outputs": body.outputs,
                "options": given,
                "model": pipeline.name,
            }
            return self.queue.submit(New(identifier, owner, shape, pipeline.name, seed, shown, stored))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _options(self, given: Mapping[str, Any]) -> CallOptions:
        given = renamed(given, quietly=True)
        unknown = next((name for name in given if name not in OPTIONS), None)
        if unknown is not None:
            raise InputError(f"option {unknown[:80]!r} is not known, expected one of: {', '.join(OPTIONS)}")
        options = CallOptions.parse(given)
        if isinstance(options.seed, tuple):
            raise InputError("seed is a list, expected one number: a request has one item")
        samples = options.num_samples * options.num_candidates
        if samples > self.settings.most_samples:
            raise InputError(
                f"num_samples times num_candidates is {samples}, expected at most {self.settings.most_samples}; "
                "send several requests"
            )
        return options

    def _read(
        self,
        pipeline: XgemPipeline,
        inputs: Mapping[str, Any],
        starts: Mapping[str, Any],
        options: CallOptions,
        folder: Path,
        *,
        in_process: bool,
    ) -> None:
        """Read everything once, as the worker will; texts and numbers here, files in a process of their own."""
        if in_process:
            from xgem.pipeline.conditioning import read_prompts

            read_prompts(pipeline.preset, inputs, options.reading)
            return
        check_readable(pipeline.preset, inputs, starts, options.reading, folder, self.settings)


def opened(stored: Mapping[str, Mapping[str, Any]], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs, and the options ``image`` and ``mask_image``, as the pipeline takes them."""

    def value(entry: Mapping[str, Any]) -> Any:
        if "value" in entry:
            return entry["value"]
        if "file" in entry:
            return str(folder / entry["file"])
        return {structure: str(folder / file) for structure, file in entry["files"].items()}

    inputs, *starts = ({name: value(entry) for name, entry in stored[kind].items()} for kind in ("inputs", *STARTS))
    return inputs, {kind: values for kind, values in zip(STARTS, starts, strict=True) if values}


def stored_files(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Names of a request's files in its folder, by the form field that each was sent as."""
    files: dict[str, str] = {}
    for kind, entries in stored.items():
        for name, entry in entries.items():
            field = name if kind == "inputs" else f"{kind}:{name}"
            if "file" in entry:
                files[field] = entry["file"]
            files |= {f"{field}:{structure}": file for structure, file in entry.get("files", {}).items()}
    return files


def _placed(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Which file is for what; InputError for a field that means nothing."""
    stored: dict[str, dict[str, Any]] = {kind: {} for kind in ("inputs", *STARTS)}
    for field, data in files.items():
        name, _, of = field.partition(":")
        if not data:
            raise InputError(f"field {field[:80]!r}: the file is empty")
        entry: dict[str, Any] = {"file": _file_of(field, data)}
        if "report" in (name, of):
            entry = {"value": _text(field, data)}
        if name in STARTS and of in MODALITIES:
            stored[name][of] = entry
        elif name == "mask" and of:
            masks = stored["inputs"].setdefault("mask", {"files": {}})
            if "files" not in masks:
                raise InputError("mask is given twice, as one file and by structure")
            masks["files"][of] = entry["file"]
        elif name in FILES and not of and name not in stored["inputs"]:
            stored["inputs"][name] = entry
        else:
            raise InputError(
                f"field {field[:80]!r}: expected request, {', '.join(FILES)}, mask:STRUCTURE, image:OUTPUT or "
                "mask_image:OUTPUT"
            )
    return stored


def _plain(name: str, value: Any) -> Any:
    """A value that is no file; the name of one must never be opened here."""
    if name in VIEWS or name == "mask":
        raise InputError(f"{name!r}: expected a file, sent as a field of that name, or as base64")
    if name == "boxes" and not isinstance(value, list | dict):
        raise InputError("boxes: expected a list of boxes, or COCO, as JSON")
    return value


def _text(field: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"field {field!r}: expected text in UTF-8") from None


def _file_of(field: str, data: bytes) -> str:
    """A file's name in the request's folder: of the field and the content, never of what the client called it."""
    name, _, of = field.partition(":")
    if name == "mask" and of:
        name = f"mask-{hashlib.sha256(of.encode('utf-8', 'replace')).hexdigest()[:16]}"
    elif of:
        name = f"{name}-{of}" if name in STARTS and of in MODALITIES else "unknown"
    elif name not in MODALITIES:
        name = "unknown"
    if name == "boxes":
        return "boxes.json"
    kind = sniff(data)
    ending = next((one for magic, one in _MAGIC.items() if data.startswith(magic)), "")
    return f"given-{name}{_ENDINGS.get(kind, ending)}"


def _shown(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Inputs as the API shows them: values as they are, files by what they are for."""
    shown: dict[str, Any] = {}
    for name, entry in stored["inputs"].items():
        if "value" in entry:
            shown[name] = {"value": entry["value"]}
        else:
            shown[name] = {"file": True, **({"structures": sorted(entry["files"])} if "files" in entry else {})}
    return shown


def _shape(
    pipeline: XgemPipeline, body: Body, stored: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]
) -> str:
    """Equal for requests that can be one batch."""
    parts = [pipeline.name, body.outputs, *(sorted(values) for values in stored.values()), dict(options)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _check_length(inputs: Mapping[str, Any]) -> None:
    for name, value in inputs.items():
        length = len(json.dumps(value, default=str))
        if length > MOST_TEXT:
            raise InputError(f"input {name[:80]!r}: {length} characters, expected at most {MOST_TEXT}")
