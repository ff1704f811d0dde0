"""What an application of the server holds while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from xgem.serve.queue import Queue
from xgem.serve.requests import Models, Requests
from xgem.serve.settings import Settings
from xgem.serve.tables import MIGRATIONS
from xgem.serve.tokens import Tokens
from xgem.web.database import open_database


@dataclass(frozen=True)
class Server:
    """The parts of a server. ``with_tokens``: whether users have to show one."""

    settings: Settings
    queue: Queue
    tokens: Tokens
    models: Models
    requests: Requests
    with_tokens: bool

    @classmethod
    def open(cls, settings: Settings) -> Server:
        """Open the database and the checkpoints, and delete what a crash left behind.

        Raises:
            InputError, DataError: the database cannot be used. CheckpointError: a checkpoint cannot.
        """
        engine = open_database(settings.database_url, MIGRATIONS)
        queue, tokens, models = Queue(engine), Tokens(engine), Models(settings)
        settings.tidy(queue.identifiers())
        return cls(settings, queue, tokens, models, Requests(settings, models, queue), bool(tokens.names()))
