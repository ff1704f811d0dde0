"""The page of a reader study: a link logs a reader in, and each item is one form.

No answer of the server depends on an item's arm but through what is shown: pictures are files of one length, sent with
the same headers from addresses of random ids.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Cookie, FastAPI, Form, Request, Response
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy.orm import Session

from xgem.readers import answers
from xgem.readers.answers import Entry, Refused
from xgem.readers.study import Study
from xgem.readers.task import PICTURES, Task
from xgem.types import DataError
from xgem.web.app import LOOPBACK, new_app, templates

HERE: Final = Path(__file__).parent
COOKIE: Final = "xgem_reader"
_KEPT_S: Final = 180 * 24 * 3600
"""For how long a browser keeps the cookie."""
_MAX_BODY: Final = 4096
_NOUNS: Final = {"frontal": "frontal radiograph", "lateral": "lateral radiograph", "report": "report"}

logger = logging.getLogger(__name__)
Token = Annotated[str | None, Cookie(alias=COOKIE)]


def reader_app(study: Study, hosts: Sequence[str] = LOOPBACK) -> FastAPI:
    """The application of one study; ``hosts`` are the names by which it may be called."""
    app = new_app(f"xgem reader study {study.plan.name}", max_body=_MAX_BODY, hosts=hosts)
    app.mount("/static-readers", StaticFiles(directory=HERE / "static"))
    _Pages(study).add(app)
    return app


class _Pages:
    def __init__(self, study: Study) -> None:
        self.study = study
        self.tasks = study.plan.all_tasks
        self.templates = templates(HERE / "templates")

    def add(self, app: FastAPI) -> None:
        """Register all addresses, and how a refusal is shown."""
        app.add_api_route("/r/{token}", self.enter, methods=["GET"], response_class=HTMLResponse)
        app.add_api_route("/", self.overview, methods=["GET"], response_class=HTMLResponse)
        app.add_api_route("/items/{showing}", self.item, methods=["GET"], response_class=HTMLResponse)
        app.add_api_route("/items/{showing}", self.answer, methods=["POST"], response_class=RedirectResponse)
        app.add_api_route("/items/{showing}/{part}", self.picture, methods=["GET"], response_class=Response)
        app.add_api_route("/tasks/{task}/end", self.end, methods=["POST"], response_class=RedirectResponse)
        for error in (Refused, HTTPException, RequestValidationError):
            app.add_exception_handler(error, self.refused)

    def enter(self, request: Request, token: str) -> Response:
        """Sets the cookie, and leads on by the page itself: after a redirect from another site, a browser would not
        send a cookie that is strict."""
        with Session(self.study.engine) as session:
            answers.reader_of(session, self.study, token)
        response = self._page(request, "enter", {})
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, token, max_age=_KEPT_S, httponly=True, samesite="strict", secure=secure)
        return response

    def overview(self, request: Request, token: Token = None) -> Response:
        """The current task: how far it is, its answers so far, and where to go on."""
        with Session(self.study.engine) as session:
            reader = answers.reader_of(session, self.study, token)
            progress = answers.progress_of(session, reader)
            values: dict[str, Any] = {"reader": reader.name, "progress": progress, "tasks": self.tasks}
        return self._page(request, "overview", values)

    def item(self, request: Request, showing: str, token: Token = None) -> Response:
        """One item with its question."""
        with Session(self.study.engine) as session, session.begin():
            reader = answers.reader_of(session, self.study, token)
            progress = answers.progress_of(session, reader)
            entry = answers.entry_of(progress, showing)
            shown = answers.shown_of(session, entry)
            answers.note_showing(session, entry)
        task, place = self.tasks[entry.task], progress.items.index(entry)
        values = {
            "entry": entry,
            "task": task,
            "question_of_turing": _question_of_turing(task),
            "parts": [(part, _NOUNS[part], part in PICTURES, shown[part]) for part in task.shows],
            "size": self.study.size,
            "number": place + 1,
            "total": len(progress.items),
            "back": progress.items[place - 1] if place else None,
        }
        return self._page(request, "item", values)

    def picture(self, showing: str, part: str, token: Token = None) -> Response:
        """A picture of an item: always as many bytes, and without a header that is its own."""
        with Session(self.study.engine) as session:
            reader = answers.reader_of(session, self.study, token)
            entry = answers.entry_of(answers.progress_of(session, reader), showing)
            if part not in PICTURES or part not in self.tasks[entry.task].shows:
                raise Refused(404, "no such picture")
            name = answers.shown_of(session, entry)[part]
        try:
            data = (self.study.pictures / name).read_bytes()
        except OSError as error:
            logger.error("%s: cannot be read (%s)", self.study.pictures / name, error.strerror)
            raise DataError("a picture of this study cannot be read; tell who sent you the link") from error
        return Response(data, media_type="image/png")

    def answer(
        self,
        showing: str,
        score: Annotated[int, Form()],
        guess: Annotated[str | None, Form()] = None,
        token: Token = None,
    ) -> Response:
        """Stores an answer, and leads to the next item without one."""
        with Session(self.study.engine) as session, session.begin():
            reader = answers.reader_of(session, self.study, token, lock=True)
            entry = answers.entry_of(answers.progress_of(session, reader), showing)
            answers.answer(session, self.tasks[entry.task], entry, score, guess)
            session.flush()
            following = answers.progress_of(session, reader).next
        return RedirectResponse(_place_of(following), 303)

    def end(self, task: int, token: Token = None) -> Response:
        """Ends a task, whose number is its place in the reader's order."""
        with Session(self.study.engine) as session, session.begin():
            reader = answers.reader_of(session, self.study, token, lock=True)
            progress = answers.progress_of(session, reader)
            if not 1 <= task <= len(progress.tasks):
                raise Refused(404, "no such task")
            answers.end(session, reader, progress, progress.tasks[task - 1])
        return RedirectResponse("/", 303)

    def refused(self, request: Request, error: Exception) -> Response:
        """A page for a browser, a line of JSON for others."""
        if isinstance(error, RequestValidationError):
            status, reason = 422, f"{error.errors()[0]['loc'][-1]}: {error.errors()[0]['msg']}"
        else:
            assert isinstance(error, Refused | HTTPException)
            status = error.status if isinstance(error, Refused) else error.status_code
            reason = str(error) if isinstance(error, Refused) else str(error.detail)
        if "text/html" in request.headers.get("accept", ""):
            return self._page(request, "refused", {"reason": reason}, status)
        return JSONResponse({"error": " ".join(reason.split())}, status)

    def _page(self, request: Request, name: str, values: dict[str, Any], status: int = 200) -> Response:
        values = {"study": self.study.plan.name, **values}
        return self.templates.TemplateResponse(request, f"{name}.html.jinja", values, status)


def _place_of(entry: Entry | None) -> str:
    return "/" if entry is None else f"/items/{entry.id}"


def _question_of_turing(task: Task) -> str:
    """What is asked besides the score: of the parts that may be synthetic."""
    nouns = [_NOUNS[part] for part in task.judged]
    verb = "Is" if len(nouns) == 1 else "Are"
    return f"{verb} the {' and the '.join(nouns)} real or synthetic?"
