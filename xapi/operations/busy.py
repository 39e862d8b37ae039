"""What is said of an object that other operations hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL

Busy = tuple[tuple[str, str], ...]
"""Pairs of task and operation."""


def busy(current_operations: Mapping[str, str], *, named: bool) -> Busy:
    """Return what runs; without the tasks' names, many objects look alike, which `lru_cache` likes."""
    if not current_operations:
        return ()
    if named:
        return tuple(current_operations.items())
    return tuple([(NULL, operation) for operation in current_operations.values()])


def held(class_name: str, ref: str, task: str, operation: str) -> Fault:
    """Return the fault that names the one operation in the way."""
    return errors.OTHER_OPERATION_IN_PROGRESS(class_name, ref, operation, task)


def held_by(class_name: str, ref: str, running: Iterable[tuple[str, str]]) -> Fault:
    """Return the fault that names all operations in the way, in braces when they are several."""
    running = tuple(running)
    if len(running) == 1:
        return held(class_name, ref, *running[0])
    tasks, operations = (",".join(names) for names in zip(*running, strict=True))
    return held(class_name, ref, f"{{{tasks}}}", f"{{{operations}}}")


def held_by_set(class_name: str, ref: str, running: Iterable[tuple[str, str]]) -> Fault:
    """Return the same fault as devices write it: always in braces, with semicolons."""
    tasks, operations = ("; ".join(names) for names in zip(*running, strict=True))
    return held(class_name, ref, f"{{{tasks}}}", f"{{{operations}}}")
