"""What alembic runs: the migrations, on the connection that :func:`xgem.web.database.open_database` hands over."""

from __future__ import annotations

from alembic import context

from xgem.readers.tables import VERSION_TABLE, Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
