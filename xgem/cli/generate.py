"""``xgem generate`` and ``xgem replay``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from xgem.cli import completion
from xgem.cli.inputs import fetched, inputs_of, many_of, mask_of, named, report_of
from xgem.cli.options import PrivacyThreshold, Progress, parse_guidance, privacy_options
from xgem.cli.results import Saving, finish, save
from xgem.configs.base import Rescale, Section, Voi
from xgem.pipeline.options import RENAMED, CallOptions, Format, option
from xgem.types import InputError
from xgem.utils.signals import interruptible

if TYPE_CHECKING:
    from xgem.pipeline.privacy_gate import PrivacyGate

Frontal = Annotated[str | None, typer.Option("--frontal", metavar="FILE", help="Frontal radiograph as input.")]
Lateral = Annotated[str | None, typer.Option("--lateral", metavar="FILE", help="Lateral radiograph as input.")]
Report = Annotated[
    str | None, typer.Option("--report", metavar="TEXT", help="Report as input; @FILE reads it from a text file.")
]
Frontals = Annotated[
    list[str] | None,
    typer.Option(
        "--frontal",
        metavar="FILE",
        help="Frontal radiograph as input: a file, or dicomweb://.../instances/UID. Several files, a folder or a "
        "manifest: one case each.",
    ),
]
Laterals = Annotated[
    list[str] | None,
    typer.Option(
        "--lateral",
        metavar="FILE",
        help="Lateral radiograph as input: a file, or dicomweb://.../instances/UID. Several files, a folder or a "
        "manifest: one case each.",
    ),
]
Files = Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="More files of --frontal or --lateral.")]
More = Annotated[
    list[str] | None, typer.Option("--input", metavar="NAME=VALUE", help="Input of any modality; may be repeated.")
]
Mask = Annotated[
    list[str] | None,
    typer.Option(
        "--mask",
        metavar="[NAME=]FILE",
        help="Segmentation mask to follow, of structure NAME or as named in the file; may be repeated.",
    ),
]
Boxes = Annotated[
    str | None, typer.Option("--boxes", metavar="FILE", help="Bounding boxes of findings to follow: JSON, COCO.")
]
Severity = Annotated[str | None, typer.Option("--severity", metavar="SCORE", help="Brixia score, 0 to 18.")]
Demographics = Annotated[
    str | None, typer.Option("--demographics", metavar="TEXT", help="Patient's demographics: sex:F,age:71")
]
Image = Annotated[
    list[str] | None,
    typer.Option("--image", metavar="NAME=FILE", help="Start image of an output; may be repeated."),
]
MaskImage = Annotated[
    list[str] | None,
    typer.Option("--mask-image", metavar="NAME=FILE", help="Where a start image may change; may be repeated."),
]
Keep = Annotated[list[str] | None, typer.Option("--keep", metavar="NAME=FILE", hidden=True)]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results, new or empty.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Embedded checkpoint, folder or hub id.",
        show_default="by the inputs",
        autocompletion=completion.models,
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 ...", show_default="a GPU, or cpu")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.", show_default="float32")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results of an earlier run in the folder.")]
OutputFormat = Annotated[
    Format | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="png (reports as text), or dicom: DX or secondary capture, SR, SEG.",
        show_default="png",
    ),
]
KeepPatient = Annotated[
    bool,
    typer.Option("--keep-patient", help="Give the DICOM files the patient of the DICOM input, not a synthetic one."),
]
Send = Annotated[
    list[str] | None,
    typer.Option(
        "--send",
        metavar="ADDRESS",
        help="Send the results, as DICOM, to dicomweb://host:port/path or dimse://AETITLE@host:port; may be repeated.",
    ),
]
PrivacyIndex = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help=f"{option('privacy_gate').help} PATH: manifest, folder or index of them."),
]
SaveIndex = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Save the gate's index (.safetensors) for the next call.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the metadata as JSON instead of the files' names.")]


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    """A command with an option for each field of ``CallOptions`` that the command line takes, by the field's help.

    ``function`` gets those that were given as ``options``, under their names of today.
    """
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    first = next(k for k, part in enumerate(parameters) if part.kind is inspect.Parameter.KEYWORD_ONLY)
    named, others = parameters[:first], [part for part in parameters[first:] if part.name != "options"]
    generated = [_parameter(name) for name in CallOptions.model_fields if option(name).command_line]
    old = [_parameter(new, old) for old, new in RENAMED.items()]
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    def command(**values: Any) -> None:
        context: typer.Context = values.pop("context")
        given: dict[str, Any] = {}
        for part in (*generated, *old):
            value = values.pop(part.name)
            source = context.get_parameter_source(part.name)
            if source is not None and source.name != "DEFAULT" and value is not None:
                given[part.name] = value
        function(**values, options=_parsed(given))

    keywords = [part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in (*named, *generated, *old, *others)]
    vars(command)["__signature__"] = inspect.Signature([*keywords, context])
    command.__annotations__ = {part.name: part.annotation for part in (*keywords, context)}
    command.__doc__, command.__name__ = function.__doc__, function.__name__
    return command


def _parameter(name: str, old: str | None = None) -> inspect.Parameter:
    """The parameter of a command for the option ``name``; under an ``old`` name it is accepted, but not shown."""
    field, about = CallOptions.model_fields[name], option(name)
    kind: Any
    kind, metavar = _KINDS.get(name, (None, None))
    if kind is None:
        parts = [part for part in get_args(field.annotation) if part is not type(None)]
        kind = parts[0] if parts else field.annotation
    flags = f"--{(old or name).replace('_', '-')}"
    if isinstance(about.command_line, str) and old is None:
        flags = about.command_line
    elif kind is bool:
        flags = f"{flags}/--no-{name.replace('_', '-')}"
    default = None if old else field.default
    completed = completion.samplers if name == "sampler" else None
    setting = typer.Option(flags, help=about.help, metavar=metavar, hidden=old is not None, autocompletion=completed)
    if default is None:
        kind, setting.show_default = kind | None, about.unset or True
    return inspect.Parameter(
        old or name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, setting]
    )


_KINDS: dict[str, tuple[Any, str | None]] = {
    "seed": (int, None),
    "guidance_scale": (str, "SCALE"),
    "image": (list[str], "NAME=FILE"),
    "mask_image": (list[str], "NAME=FILE"),
    "device": (str, None),
    "dtype": (str, None),
    "voi": (Voi, "NAME"),
    "rescale": (Rescale, "NAME"),
    "report_section": (Section, "NAME"),
}
"""Type on the command line, where it is another one than in Python, and metavar."""


def _parsed(given: dict[str, Any]) -> dict[str, Any]:
    """Options by today's names, with values as Python takes them; old names with a line on stderr."""
    for old, new in RENAMED.items():
        if old in given:
            before, now = f"--{old.replace('_', '-')}", f"--{new.replace('_', '-')}"
            if new in given:
                raise InputError(f"{before} is the old name of {now}, and both were given; give {now} alone")
            typer.echo(f"xgem: warning: {before} is deprecated, use {now}", err=True)
            given[new] = given.pop(old)
    if "guidance_scale" in given:
        given["guidance_scale"] = parse_guidance(given["guidance_scale"])
    if "image" in given:
        given["image"] = fetched(named(given["image"], "--image"))
    if "mask_image" in given:
        given["mask_image"] = named(given["mask_image"], "--mask-image")
    return given


@_with_options
def generate(
    outputs: Annotated[
        str,
        typer.Option(
            "--outputs", metavar="NAMES", help="What to generate: lateral,report", autocompletion=completion.outputs
        ),
    ],
    out: Out,
    files: Files = None,
    frontal: Frontals = None,
    lateral: Laterals = None,
    report: Report = None,
    mask: Mask = None,
    boxes: Boxes = None,
    severity: Severity = None,
    demographics: Demographics = None,
    more: More = None,
    model: Model = None,
    revision: Revision = None,
    *,
    format: OutputFormat = None,
    keep_patient: KeepPatient = False,
    send: Send = None,
    privacy_gate: PrivacyIndex = None,
    privacy_threshold: PrivacyThreshold = None,
    save_privacy_index: SaveIndex = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    options: dict[str, Any],
) -> None:
    """Generate the missing parts of a study (radiographs, report) from the parts that you have.

    xgem generate --frontal cxr.dcm --outputs lateral,report --out results

    Without inputs, outputs are sampled unconditionally. All files are marked as synthetic and contain what xgem replay
    needs to generate them again; the text of an input report is stored in them.

    Of several cases (--frontal a.png b.png, a folder, a manifest; --report @FOLDER), each gets a folder in DIR, named
    after its file or study. After an interruption, the same command goes on.
    """
    from xgem.utils.files import check_output_folder

    # Check what can be checked before anything is loaded.
    saving = Saving.of(out, overwrite, as_json, format, keep_patient, send)
    many, single = many_of(frontal, lateral, report_of(report), files or ())
    single |= {"mask": mask_of(mask), "boxes": boxes, "severity": severity, "demographics": demographics}
    inputs = inputs_of(single, more)
    names = [name.strip() for name in outputs.split(",") if name.strip()]
    if twice := [name for name in many if name in inputs]:
        raise InputError(f"input {twice[0]!r} is given twice")
    if many and "image" in options:
        raise InputError("--image and several cases; start from an image in one run per case")
    if not many:
        check_output_folder(out, overwrite=overwrite)
    gate = _gate(privacy_gate, privacy_threshold, save_privacy_index)

    from xgem.api import load, model_for

    # Load the model, and make the gate's index.
    where = {name: options.pop(name, None) for name in ("device", "dtype")}
    pipeline = load(model or model_for({**inputs, **many}), revision=revision, **where)
    if gate is not None and save_privacy_index is not None:
        gate = gate.indexed(pipeline, names)
        gate.save(save_privacy_index)
    # Generate and save.
    if many:
        with interruptible("finished cases are kept, and the same command goes on with the others"):
            _save_cases(pipeline, many, inputs, names, saving, {**options, "privacy_gate": gate})
        return
    with interruptible("nothing was written, and the same command starts again"):
        generation = pipeline(inputs, names, privacy_gate=gate, **options)
    save(generation, saving)


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="PNG, report or DICOM file written by xgem.")],
    out: Out,
    frontal: Frontal = None,
    lateral: Lateral = None,
    report: Report = None,
    mask: Mask = None,
    boxes: Boxes = None,
    more: More = None,
    image: Image = None,
    mask_image: MaskImage = None,
    keep: Keep = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Regenerate a file from its metadata: identically, on the same machine.

    Input images are looked up by their recorded name in the working folder and in the folder of FILE, or given as
    options. Model, device and dtype are the recorded ones unless given. The exit code is 1 if the new file differs.
    """
    from xgem.utils.files import check_output_folder

    text = report_of(report)
    if isinstance(text, Path):
        from xgem.pipeline.cases import read_text

        text = read_text(text)
    inputs = inputs_of(
        {"frontal": frontal, "lateral": lateral, "report": text, "mask": mask_of(mask), "boxes": boxes}, more
    )
    starts = {"image": image, "mask_image": mask_image, "keep": keep}
    images = _parsed({name: value for name, value in starts.items() if value})
    check_output_folder(out, overwrite=overwrite)

    from xgem.data.headers import is_dicom
    from xgem.pipeline.replay import replay as run

    replayed = run(file, inputs=inputs, model=model, device=device, dtype=dtype, progress=progress, **images)
    save(replayed.generation, Saving(out, overwrite, as_json, "dicom" if is_dicom(file) else "png"))
    if not replayed.identical:
        typer.echo(
            f"xgem: the new file differs from {file}, which was generated on another machine, device or version",
            err=True,
        )
        raise typer.Exit(1)
    typer.echo(f"identical to {file}", err=True)


def _gate(path: Path | None, threshold: str | None, index: Path | None) -> PrivacyGate | None:
    if path is None:
        if threshold is not None or index is not None:
            raise InputError("--privacy-threshold and --save-privacy-index need --privacy-gate; give that too")
        return None
    if index is not None and index.suffix != ".safetensors":
        raise InputError(f"--save-privacy-index is {str(index)!r}, expected a file name that ends in .safetensors")
    from xgem.pipeline.privacy_gate import PrivacyGate

    return PrivacyGate.open(path, **privacy_options(threshold))


def _save_cases(
    pipeline: Any,
    many: dict[str, list[Path]],
    shared: dict[str, Any],
    outputs: list[str],
    saving: Saving,
    options: dict[str, Any],
) -> None:
    """Generate all cases; print each file as soon as its case is done, or all records in the end."""
    from xgem.pipeline.cases import gather, generate_cases, reading_of

    cases = gather(pipeline.preset, many, shared)
    options = {**reading_of(many).model_dump(), **options}
    made = generate_cases(
        pipeline,
        cases,
        outputs,
        saving.out,
        shared=shared,
        overwrite=saving.overwrite,
        saving=saving.options,
        **options,
    )
    finish((folder for folder, _ in made), saving, many=True)
