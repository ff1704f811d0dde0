"""Routes of the page: the form, the history, one generation, and a chosen picture as the model will see it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, FastAPI, Form, Request, Response, UploadFile
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError

from xgem.configs.reading import ReadOptions
from xgem.serve.api import AnyServer, User
from xgem.serve.reading import check_readable
from xgem.types import InputError
from xgem.web.app import templates

if TYPE_CHECKING:
    from xgem.serve.state import Server

HERE: Final = Path(__file__).parent
EXAMPLES: Final = (
    ("Normal", "Heart size is normal. The lungs are clear. No pleural effusion or pneumothorax."),
    ("Effusion", "Large left pleural effusion."),
    ("Cardiomegaly", "The cardiac silhouette is enlarged. No focal consolidation."),
    ("Pneumonia", "Right lower lobe opacity, consistent with pneumonia."),
    ("Emphysema", "Hyperinflated lungs with flattened diaphragms, consistent with emphysema."),
)
"""Names and texts of reports to start from; written for this page."""

_pages = templates(HERE / "templates")
router = APIRouter(include_in_schema=False)


def add_page(app: FastAPI) -> None:
    """Add the page to the application of the API. The pages themselves hold no data and need no token."""
    app.mount("/page-static", StaticFiles(directory=HERE / "static"), name="page-static")
    app.include_router(router)


@router.get("/", response_class=HTMLResponse)
def form(request: Request) -> Any:
    """The form of a request."""
    return _pages.TemplateResponse(request, "generate.html.jinja", {"examples": EXAMPLES})


@router.get("/generations", response_class=HTMLResponse)
def history(request: Request) -> Any:
    """What the user generated."""
    return _pages.TemplateResponse(request, "generations.html.jinja")


@router.get("/generations/{identifier}", response_class=HTMLResponse)
def generation(request: Request, identifier: str) -> Any:
    """A request's progress and results."""
    return _pages.TemplateResponse(request, "generation.html.jinja", {"id": identifier})


@router.post("/page/picture")
def picture(
    server: AnyServer,
    user: User,
    file: UploadFile,
    view: Annotated[str, Form()],
    model: Annotated[str, Form()],
    reading: Annotated[str, Form()] = "{}",
) -> Response:
    """A picture as the model sees it: an 8-bit grey PNG of the model's size.

    ``reading``: options of reading (``voi``, ``rescale``, ``invert``, ``allow_any``) that are set, as JSON.

    Raises:
        InputError: the file cannot be used, or the model takes no such view.
    """
    del user
    try:
        options = ReadOptions.model_validate_json(reading)
    except ValidationError:
        raise InputError(f"reading is {reading[:60]!r}, expected voi, rescale, invert and allow_any as JSON") from None
    seen = as_seen(server, file.file.read(), file.filename or "picture", view, model, options)
    return Response(seen, media_type="image/png")


def as_seen(server: Server, data: bytes, name: str, view: str, model: str, options: ReadOptions) -> bytes:
    """``data`` of the file ``name`` as ``model`` sees it, as PNG; read in a process of its own."""
    preset = server.models.for_request(model, {}).preset
    if view not in preset.modalities:
        raise InputError(f"{name[:80]}: {model} has no {view[:40]!r}, only: {', '.join(preset.modalities)}")
    with tempfile.TemporaryDirectory(prefix="xgem-picture-") as folder:
        file = Path(folder) / (Path(name.replace("\\", "/").replace("\0", "")).name[-80:] or "picture")
        file.write_bytes(data)
        check_readable(preset, {}, {"image": {view: str(file)}}, options, Path(folder), server.settings)
        return (Path(folder) / f"image-{view}.png").read_bytes()
