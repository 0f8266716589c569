"""Alembic migrations of the control plane's database; run at every start by `store.migrate`."""
