"""Preemption: the notice that an attempt was given, the place that a waiting job was promised"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("notice", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("promise", sa.JSON(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("promise")
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.drop_column("notice")
