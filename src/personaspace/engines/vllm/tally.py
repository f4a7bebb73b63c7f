"""Which token of a step belongs to which request, what is done to it and where it is summed; it knows nothing of vLLM.

A token counts once, whatever is computed again: each read range remembers the first position that was not counted yet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from personaspace.engines.vllm.ask import Ask
from personaspace.engines.vllm.layers import Sums
from personaspace.engines.vllm.moves import Rows

KEPT = 4096
"""Results of requests that ended are kept until they are fetched, the newest so many of them."""
ENDS = 16
"""A request may have so many tokens that end it; those do not count."""


@dataclass
class Sum:
    """stream: `[layers, hidden]`; norm: `[layers]`; touched, count: tokens."""

    stream: Tensor
    norm: Tensor
    touched: Tensor
    count: Tensor


@dataclass
class Step:
    """What a pass left of its tokens: how far each is along the direction, and whether it was moved, `[2, tokens]`."""

    values: Tensor | None = None


@dataclass
class Part:
    """A range of a request's tokens that is read as one. stop None: to its end. next: the first position not yet counted.
    lost: there was no place for it in a step, so that it cannot be known. along: where its tokens stood in passes."""

    next: int
    stop: int | None
    slot: int | None = None
    aside: Sum | None = None
    lost: bool = False
    along: list[tuple[Step, int, int]] = field(default_factory=list)


@dataclass
class Request:
    """A request in flight. rows: of moves, on a prompt's and on a reply's tokens."""

    ask: Ask
    prompt: int
    rows: tuple[int, int]
    ends: tuple[int, ...]
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """What was read of a request: one `Sum` a part; the layers that were asked for; where projections were, each token's and
    whether it was moved, `[2, tokens]`, part after part."""

    layers: tuple[int, ...]
    sums: list[Sum]
    along: Tensor | None = None


class Tally:
    """Requests in flight, by the engine's id, and the results of those that ended, by key."""

    def __init__(self, rows: Rows, sums: Sums) -> None:
        self.rows, self.sums = rows, sums
        self.live: dict[str, Request] = {}
        self.done: OrderedDict[str, Result] = OrderedDict()
        self._free = list(range(sums.slots))
        self._ends = torch.full((sums.slots + 1, ENDS), -1, dtype=torch.long, device=sums.slot.device)
        self._dirty = 0  # so many places of the step before are not what they are without requests
        self._last: tuple[Step, int] | None = None  # a pass whose tokens somebody wants each, and how many they are

    # -- requests --------------------------------------------------------------------------------------------------

    def begin(self, id: str, ask: Ask, prompt: int, ends: Iterable[int] = ()) -> None:
        """A request is scheduled for the first time, or again after it was put off. Raises `UsageError`."""
        if id in self.live:
            return
        rows = (self.rows.take(ask.first), self.rows.take(ask.interventions))
        request = Request(ask, prompt, rows, tuple(sorted(ends))[:ENDS])
        if ask.reads and ask.spans is not None:
            request.parts = [Part(a, b) for a, b in ask.spans]
        elif ask.reads:
            request.parts = [Part(prompt, None)]
        self.live[id] = request

    def end(self, id: str) -> None:
        """A request ended, in whatever way: its places are free, and what was read waits to be fetched."""
        request = self.live.pop(id, None)
        if request is None:
            return
        for row in request.rows:
            self.rows.give_back(row)
        if request.parts and not any(part.lost for part in request.parts):
            self.done[request.ask.key] = self._result(request)
            while len(self.done) > KEPT:
                self.done.popitem(last=False)
        for part in request.parts:
            self._release(part)

    def take(self, key: str, again: bool = False) -> Result | None:
        """What was read under a key, once; of a request in flight: so far, and from now on nothing more, or, `again`, anew."""
        if key in self.done:
            return self.done.pop(key)
        request = next((r for r in self.live.values() if r.ask.key == key and r.parts), None)
        if request is None:
            return None
        result = None if any(part.lost for part in request.parts) else self._result(request)
        for part in request.parts:
            self._release(part)
            part.along = []
        if not again:
            request.parts = []
        return result

    def _result(self, request: Request) -> Result:
        sums = [self._sum_of(part) for part in request.parts]
        if not request.ask.project:
            return Result(request.ask.layers, sums)
        self._collect()
        along = [self._along(part, int(s.count)) for part, s in zip(request.parts, sums, strict=True)]
        return Result(request.ask.layers, sums, torch.cat(along, 1))

    def _along(self, part: Part, count: int) -> Tensor:
        """Its tokens that count: those that came after the reply's end are last."""
        pieces = [step.values[:, a:b] for step, a, b in part.along if step.values is not None]
        return torch.cat(pieces, 1)[:, :count].cpu() if pieces else torch.zeros(2, 0)

    def _collect(self) -> None:
        """Puts aside what the last pass left of its tokens: the next one writes over it."""
        if self._last is not None:
            step, total = self._last
            hit = self.sums.hit[:total] if self.sums.moving else torch.zeros(total, device=self.sums.hit.device)
            step.values, self._last = torch.stack([self.sums.along[:total], hit]), None

    def _sum_of(self, part: Part) -> Sum:
        if part.slot is None:
            return part.aside or self._nothing()
        s, k = self.sums, part.slot
        stream = torch.stack([layer[k] for layer in s.stream]).cpu()
        norm = torch.stack([layer[k] for layer in s.norm]).cpu()
        return Sum(stream, norm, s.touched[k].cpu().clone(), s.count[k].cpu().clone())

    def _nothing(self) -> Sum:
        layers, hidden = len(self.sums.stream), self.sums.stream[0].shape[1]
        return Sum(torch.zeros(layers, hidden), torch.zeros(layers), torch.zeros(()), torch.zeros(()))

    # -- slots -----------------------------------------------------------------------------------------------------

    def _hold(self, part: Part, ends: Sequence[int], busy: set[int]) -> int:
        """The part's slot; where all are taken, one that this step does not need is put aside on the host. Where there is
        none, the part is lost, and nobody's slot is given."""
        if part.slot is None:
            if not self._free and not self._put_aside(busy):
                part.lost = True
                return self.sums.slots
            part.slot = self._free.pop()
            s, k = self.sums, part.slot
            for n, (stream, norm) in enumerate(zip(s.stream, s.norm, strict=True)):
                stream[k] = part.aside.stream[n].to(stream.device) if part.aside else 0
                norm[k] = part.aside.norm[n].to(norm.device) if part.aside else 0
            s.touched[k] = part.aside.touched.to(s.touched.device) if part.aside else 0
            s.count[k] = part.aside.count.to(s.count.device) if part.aside else 0
            part.aside = None
            self._ends[k] = -1
            self._ends[k, : len(ends)] = torch.tensor(list(ends), dtype=torch.long, device=self._ends.device)
        busy.add(part.slot)
        return part.slot

    def _put_aside(self, busy: set[int]) -> bool:
        held = (p for r in self.live.values() for p in r.parts if p.slot is not None and p.slot not in busy)
        part = next(held, None)
        if part is None:
            return False
        part.aside = self._sum_of(part)
        self._release(part, keep=True)
        return True

    def _release(self, part: Part, keep: bool = False) -> None:
        if part.slot is not None:
            self._free.append(part.slot)
        part.slot = None
        if not keep:
            part.aside = None

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self, order: Sequence[str], scheduled: Sequence[int], computed: Mapping[str, int], ids: Tensor) -> None:
        """Fills the tables for a step. order: requests as their tokens stand in the batch, with how many each has in it,
        and how many it had before; ids: the tokens, `[tokens]`."""
        self._collect()
        total = int(sum(scheduled))
        asked = any(id in self.live for id in order)
        if not asked and not self._dirty:
            return  # the tables are what they are without requests
        size = max(total, self._dirty)
        row = np.zeros(size, dtype=np.int64)
        slot = np.full(size, self.sums.slots, dtype=np.int64)
        reads, at, each = False, 0, Step()
        busy = {p.slot for id in order if id in self.live for p in self.live[id].parts if p.slot is not None}
        for id, n in zip(order, scheduled, strict=True):
            request = self.live.get(id)
            if request is not None:
                self._moves(request, computed[id], row[at : at + n])
                held = self._reads(request, computed[id], slot[at : at + n], busy)
                if request.ask.project and held:
                    self._last = (each, total)
                    for part, a, b in held:
                        part.along.append((each, at + a, at + b))
                reads |= bool(held)
            at += n
        device = self.sums.slot.device
        self.sums.row[:size] = torch.from_numpy(row).to(device)
        where = torch.from_numpy(slot).to(device)
        if reads:
            ended = (ids[:total, None] == self._ends[where[:total]]).any(-1)
            where[:total] = torch.where(ended, self.sums.slots, where[:total])
            self.sums.count.index_add_(0, where[:total], torch.ones(total, device=device))
        self.sums.slot[:size] = where
        self.sums.moving = bool(row.any())
        if device.type == "cpu":
            kept = (where[:total] < self.sums.slots).nonzero().flatten()
            self.sums.kept = kept if len(kept) else None
        self._dirty = total if asked else 0

    def rest(self) -> None:
        """Makes the tables what they are without requests: a pass follows that is nobody's."""
        self._collect()
        self.sums.row[: self._dirty] = 0
        self.sums.slot[: self._dirty] = self.sums.slots
        self.sums.kept, self._dirty = None, 0

    def _moves(self, request: Request, start: int, row: np.ndarray) -> None:
        """The tokens' moves, `[tokens]`, of which the first is at position `start`."""
        first, reply = request.rows
        row[:] = first
        spans = request.ask.spans if request.ask.spans is not None else ((request.prompt, start + len(row)),)
        for a, b in spans:
            row[max(0, a - start) : max(0, b - start)] = reply

    def _reads(self, request: Request, start: int, slot: np.ndarray, busy: set[int]) -> list[tuple[Part, int, int]]:
        """Writes the tokens' slots, `[tokens]`, of which the first is at position `start`; the parts that are read, and from
        where to where in them."""
        stop, some = start + len(slot), []
        for part in request.parts:
            a, b = max(part.next, start), stop if part.stop is None else min(part.stop, stop)
            if a < b and not part.lost:
                ends = () if request.ask.spans is not None else request.ends
                slot[a - start : b - start] = self._hold(part, ends, busy)
                part.next = b
                some.append((part, a - start, b - start))
        return some
