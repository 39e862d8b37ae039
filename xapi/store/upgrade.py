"""Bring an older database up to the schema of this program, losing nothing.

What the schema has and the database has not is found by comparing the two (alembic's autogenerate) and
added: tables and columns. What the database has beyond the schema stays as it is. What cannot be found
by comparing, a rename or a change of data or of a column's type, is a function in `UPGRADES`. All of it
happens inside the caller's transaction: a database is upgraded wholly or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import (
    AddColumnOp,
    AlterColumnOp,
    CreateTableOp,
    MigrateOperation,
    ModifyTableOps,
)
from sqlalchemy import Connection, MetaData

Upgrade = Callable[[Operations], None]

UPGRADES: Mapping[int, Upgrade] = {}
"""Number of a format to the function that makes it of the one before; format 1 is the first."""


class UpgradeRefused(Exception):
    """The database differs from the schema in a way that needs a function in `UPGRADES`."""


def newest(upgrades: Mapping[int, Upgrade] = UPGRADES) -> int:
    """Return the number of the format that this program writes."""
    return max(upgrades, default=1)


def upgrade(
    connection: Connection,
    metadata: MetaData,
    found: int,
    upgrades: Mapping[int, Upgrade] = UPGRADES,
    sound: Callable[[], None] = lambda: None,
) -> list[str]:
    """Upgrade a database of format `found` in the running transaction; return what was done, for the log.

    A new database is of format 0: it needs its tables and no function, as there is nothing to convert.
    `sound` is called before anything is changed and may raise.
    Raises UpgradeRefused when a column's type differs; what the caller then rolls back.
    """
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    operations = Operations(context)
    done = []
    if any(found < number for number in upgrades):
        sound()
    for number in sorted(upgrades):
        if 0 < found < number:
            upgrades[number](operations)
            done.append(f"format {number}")
    changes = list(_flat(produce_migrations(context, metadata).upgrade_ops_list[0].ops))
    if changes:
        sound()
    for operation in changes:
        if isinstance(operation, CreateTableOp):
            operations.invoke(operation)
            done.append(f"table {operation.table_name}")
        elif isinstance(operation, AddColumnOp):
            operations.invoke(operation)
            done.append(f"column {operation.table_name}.{operation.column.name}")
        elif isinstance(operation, AlterColumnOp) and operation.modify_type is not None:
            raise UpgradeRefused(
                f"column {operation.table_name}.{operation.column_name} holds {operation.existing_type!r} "
                f"where this version wants {operation.modify_type!r}"
            )
    return done


def _flat(operations: list[MigrateOperation]) -> Iterator[MigrateOperation]:
    for operation in operations:
        if isinstance(operation, ModifyTableOps):
            yield from _flat(operation.ops)
        else:
            yield operation
