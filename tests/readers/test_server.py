"""The page of a study: logging in, answering, revising, going on, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from xgem.readers.server import COOKIE, reader_app
from xgem.readers.study import Study, new_links
from xgem.readers.tables import AnswerRow, EndRow, ReaderRow, ShowingRow
from xgem.types import InputError

ITEM = re.compile(r'action="(/items/[0-9a-f]{32})"')


class Visit(NamedTuple):
    """A study with the links to it, and a browser of each reader."""

    study: Study
    tokens: dict[str, str]
    anna: TestClient
    ben: TestClient


def client_of(study: Study, token: str | None = None) -> TestClient:
    client = TestClient(reader_app(study), follow_redirects=False)
    if token is not None:
        assert client.get(f"/r/{token}").status_code == 200
    return client


@pytest.fixture
def visit(new_study: Callable[..., Study]) -> Visit:
    study = new_study(items=2, turing=True)
    tokens = new_links(study)
    return Visit(study, tokens, client_of(study, tokens["anna"]), client_of(study, tokens["ben"]))


def first_item(client: TestClient) -> str:
    """The address of the next item; its page has been opened."""
    found = ITEM.search(client.get("/").text)
    assert found is not None
    assert client.get(found[1]).status_code == 200
    return found[1]


def answer(client: TestClient, item: str, score: int = 3, guess: str | None = "real") -> Any:
    data = {"score": str(score)} | ({} if guess is None else {"guess": guess})
    return client.post(item, data=data)


def answers(study: Study) -> list[tuple[int, str | None, int]]:
    with Session(study.engine) as session:
        return [(row.score, row.guess, row.revisions) for row in session.scalars(select(AnswerRow))]


def finish_task(client: TestClient, number: int) -> None:
    while (found := ITEM.search(client.get("/").text)) is not None:
        client.get(found[1])
        assert answer(client, found[1]).status_code == 303
    assert client.post(f"/tasks/{number}/end").status_code == 303


def test_link_sets_a_strict_cookie_and_stores_only_a_hash(visit: Visit) -> None:
    response = TestClient(reader_app(visit.study)).get(f"/r/{visit.tokens['anna']}")
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "url=/" in response.text
    with Session(visit.study.engine) as session:
        stored = session.scalars(select(ReaderRow.token_sha256)).all()
    assert all(len(str(one)) == 64 for one in stored)
    assert not set(stored) & set(visit.tokens.values())


def test_cookie_of_a_page_with_tls_is_secure(visit: Visit) -> None:
    for scheme, secure in (("https", True), ("http", False)):
        client = TestClient(reader_app(visit.study), base_url=f"{scheme}://testserver")
        assert ("secure" in client.get(f"/r/{visit.tokens['anna']}").headers["set-cookie"].lower()) == secure


def test_page_answers_to_its_own_names_alone(visit: Visit) -> None:
    client = TestClient(reader_app(visit.study, ["study.example"]), base_url="http://other.example")
    assert client.get("/").status_code == 400
    assert client.get("/", headers={"Host": "study.example"}).status_code == 401


def test_new_link_revokes_the_old_one(visit: Visit) -> None:
    new_links(visit.study, ["anna"])
    assert visit.anna.get("/").status_code == 401
    assert visit.ben.get("/").status_code == 200
    with pytest.raises(InputError, match="no reader 'carl'"):
        new_links(visit.study, ["carl"])


def test_answer_is_stored_at_once_and_leads_on(visit: Visit) -> None:
    item = first_item(visit.anna)
    response = answer(visit.anna, item, 4, "synthetic")
    assert response.status_code == 303
    assert response.headers["location"].startswith("/items/")
    assert response.headers["location"] != item
    assert answers(visit.study) == [(4, "synthetic", 0)]
    with Session(visit.study.engine) as session:
        row = session.scalars(select(AnswerRow)).one()
        shown = session.get_one(ShowingRow, row.showing_id)
        assert shown.shown_at is not None
        assert shown.shown_at <= row.first_at == row.answered_at


def test_reader_goes_on_where_the_page_was_closed(visit: Visit) -> None:
    seen = []
    for _ in range(3):
        seen.append(first_item(visit.anna))
        answer(visit.anna, seen[-1])
    again = client_of(visit.study, visit.tokens["anna"])
    page = again.get("/").text
    assert "3 of 4 items answered" in page
    assert first_item(again) not in seen


def test_answer_can_be_revised_until_the_task_ends(visit: Visit) -> None:
    item = first_item(visit.anna)
    for score in (2, 2, 5):
        assert answer(visit.anna, item, score).status_code == 303
    assert answers(visit.study) == [(5, "real", 1)]
    assert 'value="5" required data-key="5" checked' in visit.anna.get(item).text
    finish_task(visit.anna, 1)
    assert answer(visit.anna, item, 1).status_code == 409
    assert visit.anna.get(item).status_code == 409
    assert visit.anna.get(f"{item}/frontal").status_code == 409
    assert (5, "real", 1) in answers(visit.study)
    assert visit.anna.post("/tasks/1/end").status_code == 303  # again: nothing changes
    assert "task 2 of 5" in visit.anna.get("/").text


def test_whole_study(visit: Visit) -> None:
    for number in range(1, 6):
        finish_task(visit.anna, number)
    assert "All 5 tasks are done" in visit.anna.get("/").text
    assert len(answers(visit.study)) == 20
    assert visit.anna.post("/tasks/6/end").status_code == 404


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ({"score": "6", "guess": "real"}, 422),
        ({"score": "0", "guess": "real"}, 422),
        ({"score": "x", "guess": "real"}, 422),
        ({"guess": "real"}, 422),
        ({"score": "3"}, 422),
        ({"score": "3", "guess": "both"}, 422),
        ({"score": "3", "guess": "real", "more": "x" * 5000}, 413),
    ],
)
def test_answer_that_is_none(visit: Visit, data: dict[str, str], status: int) -> None:
    response = visit.anna.post(first_item(visit.anna), data=data)
    assert response.status_code == status
    assert "\n" not in response.json()["error"]
    assert answers(visit.study) == []


def test_what_is_not_the_readers_own(visit: Visit) -> None:
    item = first_item(visit.anna)
    stranger = client_of(visit.study)
    wrong = client_of(visit.study)
    wrong.cookies.set(COOKIE, "x" * 43)
    for client, status in ((visit.ben, 404), (stranger, 401), (wrong, 401)):
        assert client.get(item).status_code == status
        assert client.get(f"{item}/frontal").status_code == status
        assert answer(client, item).status_code == status
    assert stranger.get("/").status_code == 401
    assert stranger.post("/tasks/1/end").status_code == 401
    assert stranger.get("/r/wrong").status_code == 401
    assert "set-cookie" not in stranger.get("/r/wrong").headers
    assert visit.anna.get(f"/items/{'0' * 32}").status_code == 404
    assert answer(visit.anna, f"/items/{'0' * 32}").status_code == 404
    assert visit.anna.get(f"{item}/report.txt").status_code == 404
    assert visit.anna.get(f"{item}/..%2f..%2fstudy.db").status_code == 404
    assert answers(visit.study) == []


def test_items_of_later_tasks_and_items_not_shown(visit: Visit) -> None:
    with Session(visit.study.engine) as session:
        query = select(ShowingRow.id).join(ReaderRow).where(ReaderRow.name == "anna").order_by(ShowingRow.place)
        ids = session.scalars(query).all()
    assert visit.anna.get(f"/items/{ids[-1]}").status_code == 409
    assert answer(visit.anna, f"/items/{ids[-1]}").status_code == 409
    assert answer(visit.anna, f"/items/{ids[0]}").status_code == 409
    assert visit.anna.post("/tasks/1/end").status_code == 409
    assert visit.anna.post("/tasks/2/end").status_code == 409
    assert answers(visit.study) == []
    with Session(visit.study.engine) as session:
        assert session.scalar(select(func.count()).select_from(EndRow)) == 0


def test_guess_is_refused_where_none_is_asked_for(new_study: Callable[..., Study]) -> None:
    study = new_study()
    client = client_of(study, new_links(study)["anna"])
    item = first_item(client)
    assert answer(client, item, guess="real").status_code == 422
    assert answer(client, item, guess=None).status_code == 303


def test_request_from_another_site_is_refused(visit: Visit) -> None:
    item = first_item(visit.anna)
    response = visit.anna.post(item, data={"score": "3", "guess": "real"}, headers={"Origin": "https://other.example"})
    assert response.status_code == 403
    assert answers(visit.study) == []


def test_two_hundred_answers_at_once_are_stored_once(visit: Visit) -> None:
    item = first_item(visit.anna)
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda _: answer(visit.anna, item, 4).status_code, range(200)))
    assert set(found) == {303}
    assert answers(visit.study) == [(4, "real", 0)]


def test_page_is_for_people_and_errors_are_too(visit: Visit) -> None:
    page = visit.anna.get(first_item(visit.anna)).text
    assert "<script>" not in page
    assert "style=" not in page
    refused = visit.anna.get("/items/none", headers={"Accept": "text/html"})
    assert refused.status_code == 404
    assert "<h1>study</h1>" in refused.text
    assert visit.anna.get("/static-readers/reader.js").status_code == 200
