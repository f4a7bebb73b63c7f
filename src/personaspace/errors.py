"""The errors a user can meet, as one tree; it knows nothing of what raises them.

PersonaSpaceError            anything below; the command line prints its one line and exits 1
├── UsageError               an option or argument that makes no sense (exit 2)
├── CatalogError             a catalogue file that cannot be read, or a role that is not in it
├── ModelError               a model that cannot be found, loaded or understood
│   └── OutOfMemory          … because no memory is left for what it is asked
├── ActivationError          NaN or Inf in what was read from a model
├── RunError                 a run's folder that cannot be used
│   ├── RunMismatch          … because it holds a run of another configuration
│   └── RunLocked            … because another process works in it
├── DesignError              responses from which vectors cannot be computed
├── JudgeError               a judge that cannot score
└── SpaceError               a space's file that cannot be read, or does not fit what it is used on
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PersonaSpaceError(Exception):
    """The root: one line that says what was found, what was expected and what to do."""


class UsageError(PersonaSpaceError):
    """An option or argument that makes no sense."""


class CatalogError(PersonaSpaceError):
    """A catalogue file that cannot be read, or a role that is not in it."""


class ModelError(PersonaSpaceError):
    """A model that cannot be found, loaded or understood."""


class OutOfMemory(ModelError):
    """No memory is left for what a model is asked."""


class ActivationError(PersonaSpaceError):
    """NaN or Inf in what was read from a model."""


class RunError(PersonaSpaceError):
    """A run's folder that cannot be used."""


class RunMismatch(RunError):
    """The folder holds a run of another configuration."""


class RunLocked(RunError):
    """Another process works in the folder."""


class DesignError(PersonaSpaceError):
    """Responses from which vectors cannot be computed."""


class JudgeError(PersonaSpaceError):
    """A judge that cannot score."""


class SpaceError(PersonaSpaceError):
    """A space's file that cannot be read, or does not fit what it is used on."""


_IN_WORDS = {"tuple_type": "Input should be a list", "extra_forbidden": "There is no field of this name"}
"""What Pydantic says in words of its own trade, in those of who writes a file."""


def invalid_reason(error: Mapping[str, Any]) -> str:
    """What is wrong, of one of a `pydantic.ValidationError`'s errors, without what is put before a validator's own words, and
    as those begin: without a capital.

    >>> invalid_reason({"type": "value_error", "msg": "Value error, PC1 is none"})
    'PC1 is none'
    >>> invalid_reason({"type": "int_type", "msg": "Input should be a valid integer"})
    'input should be a valid integer'
    """
    if error["type"] == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    reason = _IN_WORDS.get(error["type"], str(error["msg"]))
    return reason[:1].lower() + reason[1:]
