"""Leases that follow the pool: what a running attempt was asked to give up, and when a lease was resized last"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("attempts", "follows_ns", sa.BigInteger()),
    ("attempts", "wants", sa.Integer()),
    ("attempts", "shrink", sa.JSON()),
    ("leases", "grown_control_ns", sa.BigInteger()),
    ("leases", "shrunk_control_ns", sa.BigInteger()),
)


def upgrade() -> None:
    for table, name, kind in _COLUMNS:
        op.add_column(table, sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    for table, name, _ in reversed(_COLUMNS):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column(name)
