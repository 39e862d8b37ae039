"""The errors of the API: ``errors.VM_BAD_POWER_STATE(vm, "halted", "running")`` is a `Fault`.

Every code of `schema/errors.xml` is a function of this module that makes a `Fault` of exactly its
parameters (``errors.pyi`` is their generated stub). Raise a Fault anywhere below dispatch; it is
the only exception that a client sees with a code of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from xapi import datamodel


class Fault(Exception):
    """A failure as the client sees it: a code and its parameters, all strings."""

    def __init__(self, code: str, *parameters: str) -> None:
        super().__init__(code, *parameters)
        self.code = code
        self.parameters = parameters

    @property
    def description(self) -> list[str]:
        """The ErrorDescription of the answer."""
        return [self.code, *self.parameters]


def __getattr__(name: str) -> Callable[..., Fault]:
    error = datamodel.load().errors.get(name)
    if error is None:
        raise AttributeError(f"schema/errors.xml declares no error {name}")
    least = sum(parameter[-1] not in "?*" for parameter in error.parameters)
    most = None if any(parameter[-1] == "*" for parameter in error.parameters) else len(error.parameters)

    def make(*parameters: str) -> Fault:
        if len(parameters) < least or (most is not None and len(parameters) > most):
            raise TypeError(f"{name} takes {' '.join(error.parameters) or 'no parameters'}")
        return Fault(name, *map(str, parameters))

    make.__name__ = name
    make.__doc__ = error.doc
    globals()[name] = make
    return make
