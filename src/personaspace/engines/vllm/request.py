"""What a request to vLLM asks of the engine, as plain JSON in its `extra_args`; it knows nothing of vLLM.

    {"personaspace": {"read": "all" | [layers], "project": true, "interventions": [name | {…}], "spans": [[start, end], …]}}

read: the layers whose mean over the reply's tokens is wanted. interventions: what `Intervention.to_dict` writes, or names of
ones that the engine was told of. project: whether each token's projection is wanted, at the one layer and on the one direction
that the engine was started with. spans: token ranges of the prompt to read in place of the reply. `key`, under which the means
are fetched, and `uses`, the directions in use, are put in by the engine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personaspace.errors import UsageError
from personaspace.model.interventions import Intervention, from_dict
from personaspace.model.residual import check_interventions

FIELD = "personaspace"
KNOWN = ("read", "project", "interventions", "spans", "key", "uses")
Named = Mapping[str, Sequence[Intervention]]


@dataclass(frozen=True)
class Ask:
    """A request's wishes, understood. layers: which are read, in order; empty where nothing is."""

    layers: tuple[int, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    spans: tuple[tuple[int, int], ...] | None = None
    key: str = ""
    project: bool = False

    @property
    def reads(self) -> bool:
        """Whether anything is read of it."""
        return bool(self.layers) or self.project

    @property
    def first(self) -> tuple[Intervention, ...]:
        """What is done to a prompt's tokens."""
        return tuple(i for i in self.interventions if i.where == "all")

    def salt(self, prompt: int) -> str:
        """Told apart by it are keys and values computed under different interventions, of a prompt of so many tokens;
        empty where there are none."""
        if not self.interventions:
            return ""
        parts: list[Any] = [[i.key for i in self.interventions]]
        if self.first != self.interventions:
            # The same tokens are a reply's in one request and a prompt's in another, and treated differently.
            parts.append(self.spans if self.spans is not None else prompt)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def understand(given: Any, named: Named, layers: int, hidden: int, prompt: int | None = None) -> Ask:
    """The wishes in a request's `extra_args`. prompt: how many tokens it has, where known. Raises `UsageError`."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as e:
            raise UsageError(f"{FIELD}: not JSON: {e}") from None
    if not isinstance(given, Mapping):
        raise UsageError(f"{FIELD}: expected an object, found {type(given).__name__}")
    strange = sorted(set(given) - set(KNOWN))
    if strange:
        raise UsageError(f"{FIELD}: {', '.join(map(str, strange))}: expected {', '.join(KNOWN)}")
    interventions = tuple(_interventions(given.get("interventions") or (), named))
    check_interventions(interventions, layers, hidden)
    spans, project = given.get("spans"), given.get("project", False)
    if not isinstance(project, bool):
        raise UsageError(f"{FIELD}: project: expected true or false, found {type(project).__name__}")
    return Ask(
        _layers(given.get("read"), layers),
        interventions,
        None if spans is None else _spans(spans, prompt),
        str(given.get("key", "")),
        project,
    )


def _interventions(given: Any, named: Named) -> Iterable[Intervention]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise UsageError(f"{FIELD}: interventions: expected a list")
    for one in given:
        if isinstance(one, str):
            if one not in named:
                raise UsageError(f"{FIELD}: no intervention {one!r}; there are: {', '.join(sorted(named)) or 'none'}")
            yield from named[one]
        elif isinstance(one, Mapping):
            yield from_dict(one)
        else:
            raise UsageError(f"{FIELD}: interventions: expected names or objects, found {type(one).__name__}")


def _layers(given: Any, layers: int) -> tuple[int, ...]:
    if given is None:
        return ()
    if given == "all":
        return tuple(range(layers))
    if not isinstance(given, Sequence) or not all(isinstance(k, int) and 0 <= k < layers for k in given):
        raise UsageError(f'{FIELD}: read: expected "all" or a list of layers from 0 to {layers - 1}')
    return tuple(given)


def _spans(given: Any, prompt: int | None) -> tuple[tuple[int, int], ...]:
    spans = []
    try:
        for start, end in given:
            spans.append((int(start), int(end)))
    except (TypeError, ValueError):
        raise UsageError(f"{FIELD}: spans: expected pairs of token positions") from None
    for (start, end), (after, _) in zip(spans, [*spans[1:], (prompt or 1 << 60, 0)], strict=True):
        if not 0 <= start <= end <= after:
            raise UsageError(f"{FIELD}: spans: expected ranges inside the prompt, in order, none over another")
    return tuple(spans)
