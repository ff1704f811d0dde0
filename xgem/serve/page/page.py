"""Routes of the page: the form, the history, one generation, and what a chosen picture becomes before it is sent."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, FastAPI, Form, Request, UploadFile
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from xgem.types import InputError
from xgem.web.app import templates

if TYPE_CHECKING:
    from xgem.configs.components import TransformConfig

HERE: Final = Path(__file__).parent
EXAMPLES: Final = (
    ("Normal", "Heart size is normal. The lungs are clear. No pleural effusion or pneumothorax."),
    ("Effusion", "Large left pleural effusion."),
    ("Cardiomegaly", "The cardiac silhouette is enlarged. No focal consolidation."),
    ("Pneumonia", "Right lower lobe opacity, consistent with pneumonia."),
    ("Emphysema", "Hyperinflated lungs with flattened diaphragms, consistent with emphysema."),
)
"""Names and texts of reports to start from; written for this page."""

Transform = Callable[[str | None], "TransformConfig"]


def add_page(app: FastAPI, transform: Transform, dependencies: Sequence[Any] = ()) -> None:
    """Add the page to the application of the API, which it calls at ``/api``.

    Args:
        app: of :func:`xgem.web.app.new_app`, with the routes of the API.
        transform: preprocessing of a checkpoint by its name (None: the default one); an InputError if there is none.
        dependencies: what a request must pass before it is answered (``Depends(...)``); static files need none.
    """
    app.mount("/page-static", StaticFiles(directory=HERE / "static"), name="page-static")
    app.include_router(_routes(transform), dependencies=list(dependencies))


def _routes(transform: Transform) -> APIRouter:
    pages = templates(HERE / "templates")
    router = APIRouter(include_in_schema=False)

    @router.get("/", response_class=HTMLResponse)
    def form(request: Request) -> Any:
        return pages.TemplateResponse(request, "generate.html.jinja", {"examples": EXAMPLES})

    @router.get("/generations", response_class=HTMLResponse)
    def history(request: Request) -> Any:
        return pages.TemplateResponse(request, "generations.html.jinja")

    @router.get("/generations/{id}", response_class=HTMLResponse)
    def generation(request: Request, id: str) -> Any:
        return pages.TemplateResponse(request, "generation.html.jinja", {"id": id})

    @router.post("/page/picture")
    def picture(
        file: UploadFile,
        view: Annotated[str, Form()],
        model: Annotated[str | None, Form()] = None,
        reading: Annotated[str, Form()] = "{}",
    ) -> dict[str, Any]:
        return as_seen(file.file.read(), file.filename or "picture", view, transform(model or None), reading)

    return router


def as_seen(data: bytes, name: str, view: str, transform: TransformConfig, reading: str = "{}") -> dict[str, Any]:
    """A picture as the model sees it, and what was noted when it was read.

    Args:
        data: of a PNG, JPEG, TIFF, DICOM or ``.npy`` file.
        name: of the file, for messages.
        view: frontal or lateral.
        transform: the checkpoint's preprocessing.
        reading: the fields of :class:`xgem.configs.reading.ReadOptions` that the user set, as JSON.

    Returns:
        ``picture``: an 8-bit grey PNG of the side ``transform.size`` as a data URL; ``notes``: a line each.

    Raises:
        ImageError: the file cannot be used. InputError: ``reading`` is not such options.
    """
    from PIL import Image
    from pydantic import ValidationError

    from xgem.configs.reading import ReadOptions
    from xgem.data.transforms import grey_levels, read_with, to_square
    from xgem.types import ImageError

    try:
        options = ReadOptions(**json.loads(reading))
    except (ValidationError, ValueError, TypeError):
        raise InputError(f"reading is {reading[:60]!r}, expected voi, rescale, invert and allow_any as JSON") from None
    with tempfile.TemporaryDirectory(prefix="xgem-") as folder:
        file = Path(folder) / (Path(name.replace("\\", "/").replace("\0", "")).name or "picture")
        try:
            file.write_bytes(data)
            radiograph = read_with(file, transform, options, view=view)
            square = to_square(radiograph, transform)
        except ImageError as error:
            raise ImageError(str(error).replace(f"{folder}/", "")) from None
        except OSError as error:
            raise InputError(f"{name[:60]!r}: cannot be the name of a file ({error.strerror}); rename it") from None
    png = io.BytesIO()
    Image.fromarray(grey_levels(square)).save(png, "PNG")
    return {
        "picture": f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}",
        "notes": list(radiograph.notes),
    }
