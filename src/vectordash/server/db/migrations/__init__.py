"""Migrations of the store, run by Alembic; `db/migrate.py` is the way in."""
