"""Interventions in the one form that a compiled forward pass can do without knowing which they are; knows nothing of vLLM.

A clamp is h ← h + u·(gain·(clamp(⟨h, u⟩, low, high) − ⟨h, u⟩) + shift), u of unit length: a cap has a floor and a ceiling, to
ablate is to clamp to 0, to set is to clamp to one value, to mirror is to clamp with twice the gain, and to add is to shift.
Without bounds and shift it adds exactly 0. What is done to a token is a row: up to so many clamps a layer, one after another.
Row 0 does nothing. What changes from token to token of a reply (`Decaying`), or with what a token is a part of (answers alone),
has no place in a row, and is refused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from personaspace.errors import UsageError
from personaspace.model.interventions import Ablate, Add, Cap, Decaying, Intervention, Mirror, SetTo

OFF = (-math.inf, math.inf, 0.0, 1.0)


@dataclass(frozen=True)
class Clamp:
    """unit: `[hidden]`, fp32. bounds: the least and greatest projection, what is added to it, and the gain. name: of the
    direction."""

    unit: Tensor
    bounds: tuple[float, float, float, float]
    name: str


def clamps_at(interventions: Sequence[Intervention], layer: int) -> list[Clamp]:
    """What the interventions do at a layer, in order."""
    return [_clamp(i, layer) for i in interventions if layer in i.layers_touched()]


def _clamp(i: Intervention, layer: int) -> Clamp:
    if isinstance(i, Add):
        vector = i.vector.float()
        unit = vector / vector.norm()  # the same whatever α is: it has one place
        return Clamp(unit, (-math.inf, math.inf, float(i.step @ unit), 1.0), _name(unit))
    if isinstance(i, Ablate):
        return Clamp(i.unit, (0.0, 0.0, 0.0, 1.0), _name(i.unit))
    if isinstance(i, SetTo):
        unit, target = i.unit_at(layer), i.target_at(layer)
        return Clamp(unit, (target, target, 0.0, 1.0), _name(unit))
    if isinstance(i, Mirror):
        unit = i.unit_at(layer)
        return Clamp(unit, (i.floor_at(layer), math.inf, 0.0, 2.0), _name(unit))
    if not isinstance(i, Cap):
        raise UsageError(f"engine vllm: {type(i).__name__} is not known to it")
    unit, low, high = i.at(layer)
    return Clamp(unit, (low, high, 0.0, 1.0), _name(unit))


def _name(unit: Tensor) -> str:
    return hashlib.blake2b(unit.contiguous().cpu().numpy().tobytes(), digest_size=12).hexdigest()


def check_kinds(interventions: Iterable[Intervention]) -> None:
    """Raises `UsageError` for what no row can hold."""
    for i in interventions:
        if isinstance(i, Decaying):
            raise UsageError(
                "engine vllm: Decaying is not known to it, which does the same to each token; engine transformers knows it"
            )
        if i.where == "answer":
            raise UsageError(
                "engine vllm: where=answer is not known to it; expected all or generated, or engine transformers"
            )


def check_clamps(interventions: Sequence[Intervention], limit: int) -> None:
    """Raises `UsageError` where a layer has more clamps than the compiled pass has places for."""
    layers = sorted({layer for i in interventions for layer in i.layers_touched()})
    for layer in layers:
        clamps = sum(layer in i.layers_touched() for i in interventions)
        if clamps > limit:
            raise UsageError(
                f"{clamps} interventions at layer {layer}: engine vllm was started with places for {limit} a layer; "
                f"set PERSONASPACE_VLLM_MOVES={clamps}"
            )


class Rows:
    """The clamps of a model's layers as tables on its device, which compiled code reads and this class alone writes.

    units: a layer's directions, `[directions, hidden]`, fp32, the first one zero; which: `[rows, clamps]`, a clamp's direction;
    bounds: `[rows, clamps, 4]`. Lists over layers, each a tensor of its own.
    """

    def __init__(self, layers: int, hidden: int, rows: int, clamps: int, directions: int, device: torch.device) -> None:
        self.clamps, self.directions, self.rows = clamps, directions, rows
        self.units = [torch.zeros(directions, hidden, device=device) for _ in range(layers)]
        self.which = [torch.zeros(rows, clamps, dtype=torch.long, device=device) for _ in range(layers)]
        off = torch.tensor(OFF, device=device)
        self.bounds = [off.repeat(rows, clamps, 1) for _ in range(layers)]
        self._rows: dict[tuple[str, ...], int] = {}
        self._used: dict[int, int] = {}  # row → by how many requests
        self._free = list(range(rows - 1, 0, -1))
        self._places: list[dict[str, int]] = [{} for _ in range(layers)]

    def take(self, interventions: Sequence[Intervention]) -> int:
        """The row that does them, written where there is none yet; it stays until it was given back as often as taken.
        Raises `UsageError` where too much is asked for at once."""
        if not interventions:
            return 0
        key = tuple(i.key for i in interventions)
        if key not in self._rows:
            check_clamps(interventions, self.clamps)
            self._rows[key] = self._free_row()
            self._used[self._rows[key]] = 1  # nothing of it is taken away while it is written
            try:
                self._write(self._rows[key], interventions)
            except UsageError:
                self._forget(key)
                raise
            self._used[self._rows[key]] = 0
        self._used[self._rows[key]] += 1
        return self._rows[key]

    def give_back(self, row: int) -> None:
        """A request is done with it. It is left as it is: the same is often asked for again."""
        if row:
            self._used[row] -= 1

    def _write(self, row: int, interventions: Sequence[Intervention]) -> None:
        for layer, places in enumerate(self._places):
            clamps = clamps_at(interventions, layer)
            self.which[layer][row] = 0
            self.bounds[layer][row] = self.bounds[layer].new_tensor(OFF)
            for clamp_index, clamp in enumerate(clamps):
                if clamp.name not in places:
                    place = self._free_direction(layer)
                    self.units[layer][place] = clamp.unit.to(self.units[layer].device)
                    places[clamp.name] = place
                self.which[layer][row, clamp_index] = places[clamp.name]
                self.bounds[layer][row, clamp_index] = self.bounds[layer].new_tensor(clamp.bounds)

    def _free_row(self) -> int:
        if not self._free:
            idle = next((key for key, row in self._rows.items() if not self._used[row]), None)
            if idle is None:
                raise UsageError(f"more than {self.rows - 1} different interventions in flight")
            self._forget(idle)
        return self._free.pop()

    def _forget(self, key: tuple[str, ...]) -> None:
        row = self._rows.pop(key)
        del self._used[row]
        self._free.append(row)

    def _free_direction(self, layer: int) -> int:
        places, which = self._places[layer], self.which[layer].tolist()
        empty = set(range(1, self.directions)) - set(places.values())
        if empty:
            return min(empty)
        busy = {place for row, n in self._used.items() if n for place in which[row]}
        name, place = next(((n, p) for n, p in places.items() if p not in busy), ("", 0))
        if not place:
            raise UsageError(
                f"more than {self.directions - 1} different directions in flight at layer {layer}; "
                f"set PERSONASPACE_VLLM_DIRECTIONS higher"
            )
        # Rows that nobody uses may still point here.
        for key in [key for key, row in self._rows.items() if place in which[row]]:
            self._forget(key)
        del places[name]
        return place


def directions_of(interventions: Iterable[Intervention]) -> set[tuple[int, str]]:
    """Layer and name of every direction that they use."""
    listed = list(interventions)
    layers = {layer for i in listed for layer in i.layers_touched()}
    return {(layer, clamp.name) for layer in layers for clamp in clamps_at(listed, layer)}
