"""The ``xgem`` command. Sub-commands are imported when they are called, so that ``xgem --help`` answers at once."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from xgem._version import __version__
from xgem.cli.inputs import fetching
from xgem.types import DataError, InputError, NotComputed, XgemError
from xgem.utils.progress import Shown, showing

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# name -> (module, its typer app or function, one line for the list of commands)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "generate": ("xgem.cli.generate", "generate", "Generate the missing parts of a study from the parts you have."),
    "replay": ("xgem.cli.generate", "replay", "Regenerate a file from its metadata."),
    "data": ("xgem.cli.data", "app", "Create and check manifests of studies."),
    "train": ("xgem.cli.train", "train", "Train the stages of a preset."),
    "submit": ("xgem.cli.submit", "app", "Queue a training as a job of a SLURM cluster."),
    "plan": ("xgem.cli.plan", "plan", "Memory, FLOPs, time and disk of every training stage of a preset."),
    "eval": ("xgem.cli.evaluate", "app", "Evaluate a checkpoint, or sets of generated studies."),
    "bench": ("xgem.cli.bench", "app", "Run published experiments and benchmarks."),
    "cohort": ("xgem.cli.cohort", "cohort", "Generate a synthetic data set from a plan."),
    "serve": ("xgem.cli.serve", "serve", "Answer requests over HTTP, with a queue and a worker for each device."),
    "app": ("xgem.cli.serve", "app", "Open a page for people on such a server."),
    "worker": ("xgem.cli.serve", "worker", "Generate what a server on the same database has queued."),
    "readers": ("xgem.cli.readers", "app", "Studies in which people judge real and synthetic items, blind."),
    "export": ("xgem.cli.info", "export", "Copy a checkpoint for release: no training files, float16 by default."),
    "convert": ("xgem.cli.convert", "app", "Convert published weights to xgem checkpoints."),
    "params": ("xgem.cli.info", "params", "Count the parameters of a preset, component by component."),
    "chat": ("xgem.cli.chat", "app", "Check models at an HTTP endpoint; let them write reports."),
    "pacs": ("xgem.cli.pacs", "app", "Find, fetch and send DICOM objects."),
    "cache": ("xgem.cli.cache", "app", "Show or clear what evaluations keep."),
    "doctor": ("xgem.cli.info", "doctor", "Show versions and devices, and verify checkpoints."),
}

EXTRAS = {
    "xgem[chat]": ("openai",),
    "xgem[curate]": ("dask", "distributed"),
    "xgem[dicom]": ("highdicom", "pynetdicom", "dicomweb_client", "requests"),
    "xgem[peers]": ("peft",),
    "xgem[serve]": (
        "fastapi", "fastapi_offline", "uvicorn", "python_multipart", "sse_starlette", "prometheus_client",
        "sqlalchemy", "alembic",
    ),
}  # fmt: skip
"""Packages of an extra that a command needs; the others are those of evaluating and training."""

EPILOG = (
    "Exit codes: 0 done; 1 failed (checkpoint, device, output folder, or a replay that is not identical); "
    "2 bad usage or input (option, image, report, manifest, data set, preset); 130 interrupted."
)


class LazyGroup(TyperGroup):
    """Lists its commands from a table and imports one only to run it."""

    _listing = False

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # Names only: a mistyped command is compared with them to suggest the closest.
        self.commands = cast(Any, dict.fromkeys(COMMANDS))

    def list_commands(self, ctx: Any) -> list[str]:
        """All commands, in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command itself, or a placeholder with its one-line help while the list of commands is shown."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, attribute, text = COMMANDS[cmd_name]
        if self._listing:
            return TyperCommand(cmd_name, help=text)
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, typer.Typer):
            app = target
            for info in app.registered_commands:
                info.epilog = EPILOG
        else:
            app = typer.Typer(add_completion=False)
            app.command(epilog=EPILOG)(target)
        command = typer.main.get_command(app)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help without importing the commands that it lists."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C exits with the conventional code 130, and says how to go on, without a traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo("; ".join(["xgem: interrupted", *map(str, stop.args)]), err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=LazyGroup,
    name="xgem",
    help="Generates any missing part of a chest radiography study (frontal, lateral, report) from the parts you have.",
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"xgem {__version__}")
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction]
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log progress to stderr.")] = False,
    progress: Annotated[
        bool, typer.Option("--progress/--no-progress", help="Show progress and the time left (on stderr).")
    ] = True,
) -> None:
    del version
    context.with_resource(showing(progress))
    context.with_resource(fetching())
    # Other libraries' warnings are about their own use: a user of the command cannot act on them.
    logging.basicConfig(format="xgem: %(levelname)s: %(message)s")
    logging.getLogger().setLevel(logging.WARNING if verbose else logging.ERROR)
    logging.getLogger("pynetdicom").setLevel(logging.WARNING if verbose else logging.CRITICAL)  # errors are raised too
    logging.getLogger("xgem").setLevel(logging.INFO if verbose else logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; user errors are printed as one line on stderr."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if hasattr(sys.stdout, "reconfigure"):
        cast(Any, sys.stdout).reconfigure(errors="surrogateescape")  # names of files in another encoding, as they are
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"xgem(\.|$)")
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        with showing(Shown.EVERYWHERE):
            typer.main.get_command(app).main(args=None if arguments is None else list(arguments), prog_name="xgem")
    except (XgemError, NotComputed) as error:
        return _failed(str(error), EXIT_USAGE if isinstance(error, InputError | DataError) else EXIT_FAILED)
    except UnicodeEncodeError as error:
        return _failed(f"{error.object[:60]!r}: not valid UTF-8; rename the file or convert the text", EXIT_USAGE)
    except OSError as error:
        return _failed(f"{error.filename or 'input or output'}: {error.strerror or error}", EXIT_FAILED)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "xgem"):
            raise
        wanted = [extra for extra, packages in EXTRAS.items() if package in packages]
        extra = wanted[0] if wanted else "xgem[eval], or xgem[train] to train"
        return _failed(
            f"this needs the package {package}, which is not installed: install {extra}",
            EXIT_FAILED,
        )
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _failed(reason: str, code: int) -> int:
    line = " ".join(reason.split()).encode(errors="backslashreplace").decode()
    sys.stderr.write(f"xgem: error: {line}\n")
    return code
