"""What a request to vLLM asks of the engine, as plain JSON in its `extra_args`; it knows nothing of vLLM.

    {"personaspace": {"read": "all" | [layers], "project": true, "interventions": [name | {…}], "spans": [[start, end], …]}}

read: the layers whose mean over the reply's tokens is wanted. interventions: what `Intervention.to_dict` writes, or names of
ones that the engine was told of. project: whether each token's projection is wanted, at the one layer and on the one direction
that the engine was started with. spans: token ranges of the prompt to read in place of the reply. The engine puts in `key`,
under which the means are fetched, `uses`, the directions in use, `shared`, those that are the server's own, and `client`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personaspace.engines.vllm.clamps import check_kinds
from personaspace.errors import UsageError
from personaspace.model.interventions import Intervention, from_dict
from personaspace.model.residual import check_interventions

FIELD = "personaspace"
KNOWN = ("read", "project", "interventions", "spans", "key", "uses", "shared", "client")
Named = Mapping[str, Sequence[Intervention]]


@dataclass(frozen=True)
class PersonaRequest:
    """What a request asks of the engine, checked. layers: which are read, in order; empty where nothing is."""

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

    def salt(self, prompt_length: int) -> str:
        """It keeps KV caches apart that were computed under different interventions, of a prompt of so many tokens; empty
        where there are none."""
        if not self.interventions:
            return ""
        parts: list[Any] = [[i.key for i in self.interventions]]
        if self.first != self.interventions:
            # The same tokens are a reply's in one request and a prompt's in another, and treated differently.
            parts.append(self.spans if self.spans is not None else prompt_length)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def parse_request(
    fields: Any, named: Named, layers: int, hidden: int, prompt_length: int | None = None
) -> PersonaRequest:
    """What a request's `extra_args` ask. prompt_length: in tokens, where known. Raises `UsageError`."""
    if isinstance(fields, str):
        try:
            fields = json.loads(fields)
        except ValueError as e:
            raise UsageError(f"{FIELD}: not JSON: {e}") from None
    if not isinstance(fields, Mapping):
        raise UsageError(f"{FIELD}: expected an object, found {type(fields).__name__}")
    unknown = sorted(set(fields) - set(KNOWN))
    if unknown:
        raise UsageError(f"{FIELD}: {', '.join(map(str, unknown))}: expected {', '.join(KNOWN)}")
    interventions = tuple(_interventions(fields.get("interventions") or (), named))
    check_interventions(interventions, layers, hidden)
    check_kinds(interventions)
    spans, project = fields.get("spans"), fields.get("project", False)
    if not isinstance(project, bool):
        raise UsageError(f"{FIELD}: project: expected true or false, found {type(project).__name__}")
    return PersonaRequest(
        _layers(fields.get("read"), layers),
        interventions,
        None if spans is None else _spans(spans, prompt_length),
        str(fields.get("key", "")),
        project,
    )


def _interventions(entries: Any, named: Named) -> Iterable[Intervention]:
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise UsageError(f"{FIELD}: interventions: expected a list")
    for entry in entries:
        if isinstance(entry, str):
            if entry not in named:
                raise UsageError(f"{FIELD}: no intervention {entry!r}; there are: {', '.join(sorted(named)) or 'none'}")
            yield from named[entry]
        elif isinstance(entry, Mapping):
            yield from_dict(entry)
        else:
            raise UsageError(f"{FIELD}: interventions: expected names or objects, found {type(entry).__name__}")


def _layers(requested_layers: Any, n_layers: int) -> tuple[int, ...]:
    if requested_layers is None:
        return ()
    if requested_layers == "all":
        return tuple(range(n_layers))
    if not isinstance(requested_layers, Sequence) or not all(
        isinstance(k, int) and 0 <= k < n_layers for k in requested_layers
    ):
        raise UsageError(f'{FIELD}: read: expected "all" or a list of layers from 0 to {n_layers - 1}')
    return tuple(requested_layers)


def _spans(ranges: Any, prompt_length: int | None) -> tuple[tuple[int, int], ...]:
    spans = []
    try:
        for start, end in ranges:
            spans.append((int(start), int(end)))
    except (TypeError, ValueError):
        raise UsageError(f"{FIELD}: spans: expected pairs of token positions") from None
    if not spans:
        raise UsageError(f"{FIELD}: spans: expected a range at least; leave it out to read the reply")
    for (start, end), (next_start, _) in zip(spans, [*spans[1:], (prompt_length or 1 << 60, 0)], strict=True):
        if not 0 <= start <= end <= next_start:
            raise UsageError(f"{FIELD}: spans: expected ranges inside the prompt, in order, none over another")
    return tuple(spans)
