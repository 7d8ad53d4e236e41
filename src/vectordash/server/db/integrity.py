"""Whether a database is whole: what the store itself can tell without knowing any table."""

from sqlalchemy import Connection


def damage(connection: Connection) -> str | None:
    """What is broken in the file? None: nothing that a quick look finds. PostgreSQL looks after itself."""
    if connection.dialect.name != "sqlite":
        return None
    found = connection.exec_driver_sql("pragma quick_check(1)").scalars().all()
    return None if found == ["ok"] else "; ".join(map(str, found))
