"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "readers_study",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(60), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_readers_study"),
    )
    op.create_table(
        "readers_reader",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(60), nullable=False),
        sa.Column("token_sha256", sa.String(64), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["readers_study.id"], name="fk_readers_reader_study_id"),
        sa.PrimaryKeyConstraint("id", name="pk_readers_reader"),
        sa.UniqueConstraint("study_id", "name", name="uq_readers_reader_study_id_name"),
        sa.UniqueConstraint("token_sha256", name="uq_readers_reader_token_sha256"),
    )
    op.create_table(
        "readers_item",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.String(32), nullable=False),
        sa.Column("task", sa.Integer(), nullable=False),
        sa.Column("shown", sa.JSON(), nullable=False),
        sa.Column("arm", sa.String(60), nullable=False),
        sa.Column("case", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["readers_study.id"], name="fk_readers_item_study_id"),
        sa.PrimaryKeyConstraint("id", name="pk_readers_item"),
    )
    op.create_index("ix_readers_item_study_id", "readers_item", ["study_id"])
    op.create_table(
        "readers_showing",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("reader_id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("shown_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("times_shown", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["reader_id"], ["readers_reader.id"], name="fk_readers_showing_reader_id"),
        sa.ForeignKeyConstraint(["item_id"], ["readers_item.id"], name="fk_readers_showing_item_id"),
        sa.PrimaryKeyConstraint("id", name="pk_readers_showing"),
        sa.UniqueConstraint("reader_id", "item_id", name="uq_readers_showing_reader_id_item_id"),
        sa.UniqueConstraint("reader_id", "place", name="uq_readers_showing_reader_id_place"),
    )
    op.create_table(
        "readers_answer",
        sa.Column("showing_id", sa.String(32), nullable=False),
        sa.Column("score", sa.Integer(), nullable=False),
        sa.Column("guess", sa.String(9), nullable=True),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revisions", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["showing_id"], ["readers_showing.id"], name="fk_readers_answer_showing_id"),
        sa.PrimaryKeyConstraint("showing_id", name="pk_readers_answer"),
    )
    op.create_table(
        "readers_end",
        sa.Column("reader_id", sa.Integer(), nullable=False),
        sa.Column("task", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["reader_id"], ["readers_reader.id"], name="fk_readers_end_reader_id"),
        sa.PrimaryKeyConstraint("reader_id", "task", name="pk_readers_end"),
    )


def downgrade() -> None:
    """Remove all tables, with what is in them."""
    for table in ("end", "answer", "showing", "item", "reader", "study"):
        op.drop_table(f"readers_{table}")
