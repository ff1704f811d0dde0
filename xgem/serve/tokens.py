"""Users of a server, by tokens: who shows one is known by the name it was made for."""

from __future__ import annotations

import secrets
import time

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from xgem.serve.tables import Token
from xgem.types import InputError
from xgem.web.tokens import token_hash


class Tokens:
    """The tokens in a database; only their hashes are kept."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def add(self, name: str) -> str:
        """A new token; InputError if the name has one."""
        if not name.strip() or len(name) > 100:
            raise InputError(f"name {name[:100]!r}: expected 1 to 100 characters")
        token = secrets.token_urlsafe(24)
        with Session(self.engine) as session, session.begin():
            if session.scalar(select(Token).where(Token.name == name, Token.revoked.is_(False))) is not None:
                raise InputError(f"{name!r} has a token already; revoke it first (--revoke-token)")
            session.add(Token(name=name, sha256=token_hash(token), created=time.time(), revoked=False))
        return token

    def revoke(self, name: str) -> None:
        """End a token; what its user generated stays."""
        with Session(self.engine) as session, session.begin():
            token = session.scalar(select(Token).where(Token.name == name, Token.revoked.is_(False)))
            if token is None:
                raise InputError(f"{name!r} has no token; those who have: {', '.join(self.names()) or 'nobody'}")
            token.revoked = True

    def names(self) -> list[str]:
        """Who has a token."""
        with Session(self.engine) as session:
            return list(session.scalars(select(Token.name).where(Token.revoked.is_(False)).order_by(Token.name)))

    def user(self, token: str) -> int | None:
        """The id of whoever shows the token; None if it is not valid."""
        with Session(self.engine) as session:
            return session.scalar(select(Token.id).where(Token.sha256 == token_hash(token), Token.revoked.is_(False)))
