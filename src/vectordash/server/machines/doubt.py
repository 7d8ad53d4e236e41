"""GPUs of which the store may know less than there is: withheld until the next pass has looked.

Apart from `store.py`, since neither a request nor the reconciler ever asks this: `vdserver restore` and
`doctor` do. A backup says of a GPU that it is free, but an instance made since may hold it. The first pass
records such an instance as an orphan, which keeps its GPUs withheld, and offers the others (`clear_well`).
"""

from sqlalchemy import Connection, update

from vectordash.server.machines.tables import gpus

WHY = "the store was restored: waiting for a look at the cluster"


def doubt_free(connection: Connection) -> None:
    """Withhold every GPU that counts as free; one that was withheld before keeps its reason."""
    connection.execute(update(gpus).where(gpus.c.free, ~gpus.c.suspect).values(suspect=True, suspect_why=WHY))
