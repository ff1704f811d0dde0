"""Run by alembic, with the connection of ``xgem.web.database``."""

from __future__ import annotations

from alembic import context

from xgem.serve.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
