"""The HTTP API: requests in, progress and results out. Its description is the page ``/docs``."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, RedirectResponse
from sse_starlette import EventSourceResponse
from starlette.datastructures import UploadFile

from xgem.serve.requests import Body, stored_files
from xgem.serve.settings import MIB
from xgem.serve.state import Server
from xgem.serve.tables import DONE, ENDED, Job
from xgem.serve.views import checkpoint_view, options_view, request_view
from xgem.types import InputError

COOKIE: Final = "xgem_token"
POLL_S: Final = 0.25
MOST_FIELDS: Final = 64
_TYPES: Final = {".png": "image/png", ".txt": "text/plain; charset=utf-8", ".json": "application/json"}
_DICOM: Final = "application/dicom"

Format = Literal["png", "dicom"]
router = APIRouter()


def server_of(request: Request) -> Server:
    """The server that answers."""
    return request.app.state.server


async def user_of(request: Request) -> int | None:
    """Who asks: the id of the token that is shown; None where the server has none.

    Raises:
        HTTPException: 401, no valid token.
    """
    server = server_of(request)
    if not server.with_tokens:
        return None
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
    user = await run_in_threadpool(server.tokens.user, token) if token else None
    if user is None:
        raise HTTPException(
            401, "no valid token: send the header Authorization: Bearer TOKEN, or open /login?token=TOKEN"
        )
    return user


AnyServer = Annotated[Server, Depends(server_of)]
User = Annotated[int | None, Depends(user_of)]


def job_of(identifier: str, server: AnyServer, user: User) -> Job:
    """The user's request of this id.

    Raises:
        HTTPException: 404, there is none.
    """
    job = server.queue.get(identifier, user)
    if job is None:
        raise HTTPException(404, f"no request {identifier[:40]!r}")
    return job


OwnJob = Annotated[Job, Depends(job_of)]


@router.post("/api/generations", status_code=202, openapi_extra={"requestBody": {"content": {
    "multipart/form-data": {"schema": {"type": "object", "properties": {
        "request": {"type": "string", "description": "JSON, as the body of application/json."},
        "frontal": {"type": "string", "format": "binary"},
        "lateral": {"type": "string", "format": "binary"},
        "mask": {"type": "string", "format": "binary"},
        "boxes": {"type": "string", "format": "binary"},
    }}},
    "application/json": {"schema": Body.model_json_schema()},
}}})  # fmt: skip
async def generate(request: Request, server: AnyServer, user: User) -> dict[str, Any]:
    """Queue a request.

    As JSON, with files as {"base64": "..."}, or as a form: the field "request" is the JSON, and files are the fields
    frontal, lateral, mask, boxes, mask:STRUCTURE, image:OUTPUT and mask_image:OUTPUT.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = Body.parse(await request.body())
        files = body.files()
    elif kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        body, files = await _form(request)
    else:
        raise HTTPException(415, f"content type {kind[:60]!r}: expected application/json or multipart/form-data")
    job = await run_in_threadpool(server.requests.accept, body, files, user)
    return await run_in_threadpool(_view, server, job)


async def _form(request: Request) -> tuple[Body, dict[str, bytes]]:
    async with request.form(max_files=MOST_FIELDS, max_fields=MOST_FIELDS, max_part_size=4 * MIB) as form:
        text, files = None, dict[str, bytes]()
        for name, value in form.multi_items():
            if name in files or (name == "request" and text is not None):
                raise InputError(f"field {name[:80]!r} is given twice")
            if isinstance(value, UploadFile):
                files[name] = await value.read()
            elif name == "request":
                text = value
            else:
                raise InputError(f"field {name[:80]!r}: expected a file; values belong into the JSON of 'request'")
    if text is None:
        raise InputError('the form has no field "request", expected JSON like {"inputs": {}, "outputs": ["frontal"]}')
    body = Body.parse(text)
    return body, {**body.files(), **files}


@router.get("/api/generations")
def history(
    server: AnyServer, user: User, limit: Annotated[int, Query(ge=1, le=200)] = 50, before: str | None = None
) -> dict[str, Any]:
    """The user's own requests, the newest first."""
    return {"generations": [_view(server, job) for job in server.queue.history(user, limit, before)]}


@router.get("/api/generations/{identifier}")
def state(server: AnyServer, job: OwnJob) -> dict[str, Any]:
    """A request: state, progress, and samples when it is done."""
    return _view(server, job)


@router.get("/api/generations/{identifier}/events", response_class=EventSourceResponse)
async def events(request: Request, server: AnyServer, user: User, job: OwnJob) -> EventSourceResponse:
    """Server-sent events until it has ended: "state", "progress", and "preview" with the URL of a picture or text."""
    return EventSourceResponse(_events(request, server, user, job.id), ping=15)


async def _events(request: Request, server: Server, user: int | None, identifier: str) -> AsyncIterator[dict[str, str]]:
    state: tuple[Any, ...] | None = None
    step: tuple[Any, ...] | None = None
    seen: dict[str, int] = {}
    while not await request.is_disconnected():
        job = await run_in_threadpool(server.queue.get, identifier, user)
        if job is None:
            return
        view = await run_in_threadpool(_view, server, job)
        if (job.state, view["position"]) != state:
            state = (job.state, view["position"])
            yield {"event": "state", "data": json.dumps(view)}
        if job.state in ENDED:
            return
        await run_in_threadpool(server.queue.watch, identifier)
        if (job.output, job.step) != step and job.steps:
            step = (job.output, job.step)
            yield {
                "event": "progress",
                "data": json.dumps({"output": job.output, "step": job.step, "steps": job.steps}),
            }
        for file, changed in _previews(server.settings.previews(identifier)):
            if seen.get(file.name) != changed:
                seen[file.name] = changed
                output, _, number = file.stem.rpartition("-")
                url = f"/api/generations/{identifier}/previews/{output}/{number}?v={changed}"
                yield {"event": "preview", "data": json.dumps({"output": output, "sample": int(number), "url": url})}
        await asyncio.sleep(POLL_S)


def _previews(folder: Path) -> list[tuple[Path, int]]:
    try:
        found = [(file, file.stat().st_mtime_ns) for file in folder.iterdir() if not file.name.startswith(".")]
    except OSError:  # none yet, or no longer
        return []
    return sorted(found)


@router.get("/api/generations/{identifier}/previews/{output}/{index}", response_class=FileResponse)
def preview(server: AnyServer, job: OwnJob, output: str, index: int) -> FileResponse:
    """What a running request's sample is expected to become, as PNG or text."""
    found = [file for file, _ in _previews(server.settings.previews(job.id)) if file.stem == f"{output}-{index}"]
    return _sent(found[0] if found else None, f"preview of {output[:40]!r} {index}")


@router.get("/api/generations/{identifier}/inputs/{name}", response_class=FileResponse)
def given(server: AnyServer, job: OwnJob, name: str) -> FileResponse:
    """A picture that was given, as the model sees it; of one to start from, the name is image-OUTPUT."""
    known = {*job.request["inputs"], *(f"image-{output}" for output in job.request["image"])}
    file = server.settings.inputs(job.id) / f"{name}.png"
    return _sent(file if name in known and file.is_file() else None, f"picture {name[:40]!r} among the inputs")


@router.get("/api/generations/{identifier}/files/{field}", response_class=FileResponse)
def file(server: AnyServer, job: OwnJob, field: str) -> FileResponse:
    """A file of the request as it was sent, by the name of its field, as in POST /api/generations."""
    name = stored_files(job.stored).get(field)
    return _sent(server.settings.inputs(job.id) / name if name else None, f"file {field[:40]!r}", job)


@router.get("/api/generations/{identifier}/samples/{output}/{index}", response_class=FileResponse)
def sample(
    server: AnyServer,
    job: OwnJob,
    output: str,
    index: int,
    format: Literal["png", "txt", "json", "dicom"] | None = None,
) -> Response:
    """One sample, with its metadata: a picture as png or dicom, a report as txt, json or dicom."""
    view = _done(server, job)["samples"]
    if index < 0 or index >= len(view.get(output, ())):
        raise HTTPException(404, f"no sample {index} of {output[:40]!r}")
    metadata = view[output][index]["metadata"]
    name = Path(metadata["file"])
    if format == "json":
        text = json.dumps(metadata, indent=2, ensure_ascii=False)
        headers = {"Content-Disposition": f'attachment; filename="{_name(job)}-{name.stem}.json"'}
        return Response(text, media_type=_TYPES[".json"], headers=headers)
    if format == "dicom":
        return _sent(server.settings.results(job.id) / "dicom" / f"{name.stem}.dcm", "DICOM of it", job)
    if format not in (None, name.suffix[1:]):
        raise HTTPException(404, f"{output} is no {format}; expected {name.suffix[1:]}, dicom or json")
    return _sent(server.settings.results(job.id) / "png" / name, "file of it", job)


@router.get("/api/generations/{identifier}/download")
def download(server: AnyServer, job: OwnJob, format: Format = "png") -> Response:
    """Everything in one zip, as `xgem generate` writes it."""
    _done(server, job)
    folder = server.settings.results(job.id) / format
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"{_name(job)}/{file.name}")
    headers = {"Content-Disposition": f'attachment; filename="{_name(job)}.zip"'}
    return Response(packed.getvalue(), media_type="application/zip", headers=headers)


@router.post("/api/generations/{identifier}/cancel")
def cancel(server: AnyServer, user: User, job: OwnJob) -> dict[str, Any]:
    """End a request: at once if it waits, within a step if it runs. One that has ended stays as it is."""
    server.queue.cancel(job.id)
    return _view(server, server.queue.get(job.id, user) or job)


@router.delete("/api/generations/{identifier}", status_code=204)
def delete(server: AnyServer, job: OwnJob) -> None:
    """Forget a request with its files; one that has not ended is cancelled first."""
    server.queue.cancel(job.id)
    server.queue.delete(job.id)
    server.settings.remove(job.id)


@router.get("/api/checkpoints")
def checkpoints(server: AnyServer, user: User) -> dict[str, Any]:
    """The checkpoints that can be asked for."""
    del user
    loaded = {name for worker in server.queue.workers() for name in worker.models}
    return {"checkpoints": [checkpoint_view(one, name in loaded) for name, one in server.models.opened.items()]}


@router.get("/api/options")
def options(user: User) -> dict[str, Any]:
    """The options that a request may have."""
    del user
    return {"options": options_view()}


@router.get("/login", include_in_schema=False)
def login(request: Request, server: AnyServer, token: str) -> RedirectResponse:
    """For pages: keep the token in a cookie."""
    if server.tokens.user(token) is None:
        raise HTTPException(401, "the token of this link is not valid; ask for a new one")
    answer = RedirectResponse("/", status_code=303)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, token, max_age=30 * 86400, httponly=True, samesite="strict", secure=secure)
    return answer


def _view(server: Server, job: Job) -> dict[str, Any]:
    return request_view(job, server.queue.position(job), server.settings.results(job.id))


def _done(server: Server, job: Job) -> dict[str, Any]:
    if job.state != DONE:
        raise HTTPException(409, f"the request is {job.state}, expected one that is done")
    return _view(server, job)


def _name(job: Job) -> str:
    return f"xgem-{job.id[:8]}"


def _sent(file: Path | None, what: str, job: Job | None = None) -> FileResponse:
    if file is None or not file.is_file():
        raise HTTPException(404, f"there is no {what}")
    name = None if job is None else f"{_name(job)}-{file.name}"
    return FileResponse(file, media_type=_TYPES.get(file.suffix, _DICOM), filename=name)
