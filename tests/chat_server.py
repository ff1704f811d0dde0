"""A small local server of the OpenAI protocol, which answers as a test says: slowly, with faults, or with nonsense."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from xgem.chat.settings import ChatSettings


@dataclass
class Reply:
    """What the server sends: a message's text, or another body; after ``delay`` seconds."""

    text: str = "yes"
    status: int = 200
    body: Any = None
    """In place of a completion: a JSON value, or bytes as they are."""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    finish: str = "stop"

    @classmethod
    def error(cls, status: int, message: str, **headers: str) -> Reply:
        """An error as the protocol has it."""
        return cls(status=status, body={"error": {"message": message}}, headers=headers)


Answer = Callable[[dict[str, Any], int], Reply]
"""From the request's JSON and how many came before it to the reply."""


class ChatServer:
    """Keeps every request's JSON and headers, in the order of arrival."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def settings(self, **options: Any) -> ChatSettings:
        """Settings for this server, with few attempts."""
        return ChatSettings.model_validate({"base_url": self.url, "model": "tiny", "retries": 2, **options})

    def reply(self, request: dict[str, Any], headers: dict[str, str]) -> Reply:
        """The answer to one request, which is kept."""
        with self._lock:
            before = len(self.requests)
            self.requests.append(request)
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = self.answer(request, before)
            time.sleep(reply.delay)
            return reply
        finally:
            with self._lock:
                self._at_once -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = server.reply(content, dict(self.headers.items()))
                body = completion(reply) if reply.body is None else reply.body
                sent = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    self.send_response(reply.status)
                    self.send_header("Content-Length", str(len(sent)))
                    for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(sent)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client has given up waiting

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

        return Handler


def completion(reply: Reply) -> dict[str, Any]:
    """A completion with one choice; 10 tokens in, 2 out."""
    choice = {"message": {"role": "assistant", "content": reply.text}, "finish_reason": reply.finish, "index": 0}
    return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}}


@contextmanager
def chat_server(answer: Answer = lambda request, before: Reply()) -> Iterator[ChatServer]:
    """A running server, at a free port of this machine."""
    server = ChatServer(answer)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


def question(request: dict[str, Any]) -> str:
    """The text of a request's last message."""
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")
