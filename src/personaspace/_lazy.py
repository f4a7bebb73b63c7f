"""Names that a package offers and reads only when they are asked for, so that `personaspace --help` needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562). modules: a name that is offered → the module that has it."""

    def __getattr__(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        attribute = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, attribute)
        return attribute

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return __getattr__, __dir__


def lazy_method(place: str) -> Callable[[Any], Any]:
    """A method that is a function of a room above, imported when it is called. place: `module:function`.

    >>> class Shown:
    ...     _repr_html_ = lazy_method("personaspace.report.tables:of_space")
    """
    module, _, name = place.partition(":")

    def method(self: Any) -> Any:
        return getattr(import_module(module), name)(self)

    return method
