"""Which token of a step belongs to which request, what is done to it and where it is summed; it knows nothing of vLLM.

A token counts once, whatever is computed again: each read range remembers the first position that was not counted yet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from personaspace.engines.vllm.clamps import Rows
from personaspace.engines.vllm.layers import Sums
from personaspace.engines.vllm.request import Ask

How = Literal["end", "anew", "on"]
KEPT, KEPT_BYTES = 4096, 1 << 30
"""Results of requests that ended are kept until they are fetched, the newest so many of them, in so much memory."""
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
    """What a pass left of those of its tokens that are wanted each: how far it is along the direction, and whether it was
    moved, `[2, tokens]`."""

    values: Tensor | None = None


@dataclass
class Part:
    """A range of a request's tokens that is read as one. stop None: to its end. next: the first position not yet counted.
    lost: there was no place for it in a step, so that it cannot be known. along: where its tokens stand in passes; told: of
    how many that were counted the projections were told already."""

    next: int
    stop: int | None
    slot: int | None = None
    aside: Sum | None = None
    lost: bool = False
    along: list[tuple[Step, int, int]] = field(default_factory=list)
    told: int = 0


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
    """What was read of a request: one `Sum` a part, of the layers that were asked for; where projections were, each token's
    and whether it was moved, `[2, tokens]`, part after part."""

    layers: tuple[int, ...]
    sums: list[Sum]
    along: Tensor | None = None

    @property
    def bytes(self) -> int:
        """About what it takes."""
        return sum(s.stream.nbytes for s in self.sums) + (0 if self.along is None else self.along.nbytes)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for what it does now."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Tally:
    """Requests in flight, by the engine's id, and the results of those that ended, by key."""

    def __init__(self, rows: Rows, sums: Sums) -> None:
        self.rows, self.sums = rows, sums
        self.live: dict[str, Request] = {}
        self.done: OrderedDict[str, Result] = OrderedDict()
        self._free = list(range(sums.slots))
        self._ends = torch.full((sums.slots + 1, ENDS), -1, dtype=torch.long, device=sums.slot.device)
        self._dirty = 0  # so many places of the step before are not what they are without requests
        self._bytes = 0  # that the results of requests that ended take
        self._last: tuple[Step, list[tuple[int, int]]] | None = (
            None  # a pass, and the tokens in it that are wanted each
        )

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
            self._keep(request.ask.key, self._result(request))
        for part in request.parts:
            self._release(part)

    def _keep(self, key: str, result: Result) -> None:
        self.done[key] = result
        self._bytes += result.bytes
        while len(self.done) > KEPT or (self._bytes > KEPT_BYTES and len(self.done) > 1):
            self._fetch(next(iter(self.done)))

    def _fetch(self, key: str) -> Result:
        result = self.done.pop(key)
        self._bytes -= result.bytes
        return result

    def take(self, key: str, how: How = "end") -> Result | None:
        """What was read under a key, once. Of a request in flight, all so far, with the projections since the last time: its
        reading `end`s with that, begins `anew`, or goes `on`."""
        if key in self.done:
            found = self._fetch(key)
            if how == "on":  # it has ended since, and goes on to be asked for
                self._keep(key, replace(found, along=None if found.along is None else found.along[:, :0]))
            return found
        request = next((r for r in self.live.values() if r.ask.key == key and r.parts), None)
        if request is None:
            return None
        result = None if any(part.lost for part in request.parts) else self._result(request)
        for part in request.parts:
            part.along = []
            if how != "on":
                self._release(part)
                part.told = 0
        if how == "end":
            request.parts = []
        return result

    def _result(self, request: Request) -> Result:
        sums = [self._sum_of(part, request.ask.layers) for part in request.parts]
        if not request.ask.project:
            return Result(request.ask.layers, sums)
        self._collect()
        along = [self._along(part, int(s.count)) for part, s in zip(request.parts, sums, strict=True)]
        return Result(request.ask.layers, sums, torch.cat(along, 1))

    def _along(self, part: Part, count: int) -> Tensor:
        """Its tokens that count, those that were told before left out: what came after the reply's end is last."""
        pieces = [step.values[:, a:b] for step, a, b in part.along if step.values is not None]
        found = torch.cat(pieces, 1)[:, : count - part.told].cpu() if pieces else torch.zeros(2, 0)
        part.told += found.shape[1]
        return found

    def _collect(self) -> None:
        """Puts aside what the last pass left of its tokens: the next one writes over it."""
        if self._last is not None:
            step, wanted = self._last
            s = self.sums
            both = torch.stack([s.along, s.hit if s.moving else torch.zeros_like(s.hit)])
            step.values, self._last = torch.cat([both[:, a:b] for a, b in wanted], 1), None

    def _sum_of(self, part: Part, layers: Sequence[int] | None = None) -> Sum:
        """Its sums at some layers, or all, on the host."""
        s, k = self.sums, part.slot
        at: Any = slice(None) if layers is None or len(layers) == len(s.stream) else list(layers)
        if k is not None:
            return Sum(*(x.cpu().clone() for x in (s.stream[:, k][at], s.norm[:, k][at], s.touched[k], s.count[k])))
        if part.aside is not None:
            return Sum(part.aside.stream[at], part.aside.norm[at], part.aside.touched, part.aside.count)
        n, hidden = len(s.norm[:, 0][at]), s.stream.shape[2]
        return Sum(torch.zeros(n, hidden), torch.zeros(n), torch.zeros(()), torch.zeros(()))

    # -- slots -----------------------------------------------------------------------------------------------------

    def _hold(self, part: Part, ends: Sequence[int], busy: set[int]) -> int:
        """The part's slot; where all are taken, one that this step does not need is put aside on the host. Where there is
        none, the part is lost, and nobody's slot is given."""
        if part.slot is None:
            if not self._free and not self._put_aside(busy):
                part.lost = True
                return self.sums.slots
            part.slot = k = self._free.pop()
            s, device = self.sums, self._ends.device
            for own, name in (
                (s.stream[:, k], "stream"),
                (s.norm[:, k], "norm"),
                (s.touched[k], "touched"),
                (s.count[k], "count"),
            ):
                if part.aside is None:
                    own.zero_()
                else:
                    own.copy_(sent(getattr(part.aside, name), device))
            part.aside = None
            self._ends[k] = -1
            self._ends[k, : len(ends)] = sent(torch.tensor(list(ends), dtype=torch.long), device)
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
        reads, at = False, 0
        each, wanted, n_wanted = Step(), list[tuple[int, int]](), 0
        busy = {p.slot for id in order if id in self.live for p in self.live[id].parts if p.slot is not None}
        for id, n in zip(order, scheduled, strict=True):
            request = self.live.get(id)
            if request is not None:
                self._moves(request, computed[id], row[at : at + n])
                held = self._reads(request, computed[id], slot[at : at + n], busy)
                for part, a, b in held if request.ask.project else ():
                    part.along.append((each, n_wanted, n_wanted + b - a))
                    wanted.append((at + a, at + b))
                    n_wanted += b - a
                reads |= bool(held)
            at += n
        self._last = (each, wanted) if wanted else None
        device = self.sums.slot.device
        self.sums.row[:size] = sent(torch.from_numpy(row), device)
        where = sent(torch.from_numpy(slot), device)
        if reads:
            ended = (ids[:total, None] == self._ends[where[:total]]).any(-1)
            where[:total] = torch.where(ended, self.sums.slots, where[:total])
            self.sums.count.index_add_(0, where[:total], torch.ones(total, device=device))
        self.sums.slot[:size] = where
        self.sums.moving, self.sums.reading = bool(row.any()), reads
        if device.type == "cpu":
            kept = (where[:total] < self.sums.slots).nonzero().flatten()
            self.sums.kept = kept if len(kept) else None
        self._dirty = total if asked else 0

    def rest(self) -> None:
        """Makes the tables what they are without requests: a pass follows that is nobody's."""
        self._collect()
        self.sums.row[: self._dirty] = 0
        self.sums.slot[: self._dirty] = self.sums.slots
        self.sums.kept, self.sums.reading, self._dirty = None, False, 0

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
