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
from personaspace.engines.vllm.layers import DeviceSums
from personaspace.engines.vllm.request import PersonaRequest

TakeMode = Literal["final", "reset", "continue"]
MAX_RESULTS, MAX_RESULT_BYTES = 4096, 1 << 30
"""Results of requests that ended are kept until they are fetched, the newest so many of them, in so much memory."""
STOP_TOKENS = 16
"""Places for a request's stop tokens, which do not count; there are more once one has more."""
MAX_STOP_TOKENS = 1024
"""A request may have so many stop tokens of its own."""


@dataclass
class Sum:
    """stream: `[layers, hidden]`; norm: `[layers]`; touched, count: tokens."""

    stream: Tensor
    norm: Tensor
    touched: Tensor
    count: Tensor


@dataclass
class Step:
    """What a pass left of its tokens that are projected: each one's projection on the direction, and whether a clamp changed
    it, `[2, tokens]`."""

    values: Tensor | None = None


@dataclass
class Part:
    """A range of a request's tokens that is read as one. stop None: to its end. next: the first position not yet counted.
    on_host: its sums while it has no slot. lost: there was no slot for it in a step, so that it cannot be known. pass_ranges:
    where its tokens stand in passes; reported: of how many that were counted the projections were handed out already."""

    next: int
    stop: int | None
    slot: int | None = None
    on_host: Sum | None = None
    lost: bool = False
    pass_ranges: list[tuple[Step, int, int]] = field(default_factory=list)
    reported: int = 0


@dataclass
class Request:
    """A request in flight. rows: of clamps, for a prompt's and for a reply's tokens."""

    persona_request: PersonaRequest
    prompt_length: int
    rows: tuple[int, int]
    stop_tokens: tuple[int, ...]
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True)
class ReadSums:
    """What was read of a request: one `Sum` a part, of the layers that were asked for; where projections were, each
    token's and whether a clamp changed it, `[2, tokens]`, part after part."""

    layers: tuple[int, ...]
    sums: list[Sum]
    token_values: Tensor | None = None

    @property
    def bytes(self) -> int:
        """About what it takes."""
        return sum(s.stream.nbytes for s in self.sums) + (0 if self.token_values is None else self.token_values.nbytes)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for what it does now."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Readout:
    """Requests in flight, by the engine's id, and the results of those that ended, by key."""

    def __init__(self, rows: Rows, sums: DeviceSums) -> None:
        self.rows, self.sums = rows, sums
        self.live: dict[str, Request] = {}
        self.done: OrderedDict[str, ReadSums] = OrderedDict()
        self._free = list(range(sums.slots))
        self._stop_tokens = torch.full((sums.slots + 1, STOP_TOKENS), -1, dtype=torch.long, device=sums.slot.device)
        self._dirty = 0  # so many places of the step before are not what they are without requests
        self._bytes = 0  # that the results of requests that ended take
        # A pass, and the tokens in it that are projected.
        self._last_pass: tuple[Step, list[tuple[int, int]]] | None = None

    # -- requests --------------------------------------------------------------------------------------------------

    def begin(
        self, id: str, persona_request: PersonaRequest, prompt_length: int, stop_tokens: Iterable[int] = ()
    ) -> None:
        """A request is scheduled for the first time, or again after it was put off. Raises `UsageError`."""
        if id in self.live:
            return
        rows = (self.rows.take(persona_request.first), self.rows.take(persona_request.interventions))
        request = Request(persona_request, prompt_length, rows, tuple(sorted(stop_tokens)))
        if persona_request.reads and persona_request.spans is not None:
            request.parts = [Part(a, b) for a, b in persona_request.spans]
        elif persona_request.reads:
            request.parts = [Part(prompt_length, None)]
        self.live[id] = request

    def end(self, id: str) -> None:
        """A request ended, in whatever way: its places are free, and what was read waits to be fetched."""
        request = self.live.pop(id, None)
        if request is None:
            return
        for row in request.rows:
            self.rows.give_back(row)
        if request.parts and not any(part.lost for part in request.parts):
            self._store(request.persona_request.key, self._result(request))
        for part in request.parts:
            self._release(part)

    def _store(self, key: str, result: ReadSums) -> None:
        self.done[key] = result
        self._bytes += result.bytes
        while len(self.done) > MAX_RESULTS or (self._bytes > MAX_RESULT_BYTES and len(self.done) > 1):
            self._pop_result(next(iter(self.done)))

    def _pop_result(self, key: str) -> ReadSums:
        result = self.done.pop(key)
        self._bytes -= result.bytes
        return result

    def take(self, key: str, mode: TakeMode = "final") -> ReadSums | None:
        """What was read under a key, once. Of a request in flight, all so far, with the projections since the last time: its
        reading ends with that (`final`), begins anew (`reset`), or goes on (`continue`)."""
        if key in self.done:
            ended = self._pop_result(key)
            if mode == "continue":  # it has ended since, and may be taken again
                rest = None if ended.token_values is None else ended.token_values[:, :0]
                self._store(key, replace(ended, token_values=rest))
            return ended
        request = next((r for r in self.live.values() if r.persona_request.key == key and r.parts), None)
        if request is None:
            return None
        result = None if any(part.lost for part in request.parts) else self._result(request)
        for part in request.parts:
            part.pass_ranges = []
            if mode != "continue":
                self._release(part)
                part.reported = 0
        if mode == "final":
            request.parts = []
        return result

    def _result(self, request: Request) -> ReadSums:
        layers = request.persona_request.layers
        sums = [self._sum_of(part, layers) for part in request.parts]
        if not request.persona_request.project:
            return ReadSums(layers, sums)
        self._save_projections()
        token_values = [self._token_values(part, int(s.count)) for part, s in zip(request.parts, sums, strict=True)]
        return ReadSums(layers, sums, torch.cat(token_values, 1))

    def _token_values(self, part: Part, count: int) -> Tensor:
        """Its tokens that count, those that were handed out before left out: what came after the reply's end is last."""
        pieces = [step.values[:, a:b] for step, a, b in part.pass_ranges if step.values is not None]
        values = torch.cat(pieces, 1)[:, : count - part.reported].cpu() if pieces else torch.zeros(2, 0)
        part.reported += values.shape[1]
        return values

    def _save_projections(self) -> None:
        """Puts aside what the last pass left of its tokens: the next one writes over it."""
        if self._last_pass is not None:
            step, token_ranges = self._last_pass
            s = self.sums
            projected_and_hit = torch.stack([s.projections, s.hit if s.clamping else torch.zeros_like(s.hit)])
            step.values, self._last_pass = torch.cat([projected_and_hit[:, a:b] for a, b in token_ranges], 1), None

    def _sum_of(self, part: Part, layers: Sequence[int] | None = None) -> Sum:
        """Its sums at some layers, or all, on the host."""
        s, slot = self.sums, part.slot
        layer_index: Any = slice(None) if layers is None or len(layers) == len(s.stream) else list(layers)
        if slot is not None:
            sums = (s.stream[:, slot][layer_index], s.norm[:, slot][layer_index], s.touched[slot], s.count[slot])
            return Sum(*(tensor.cpu().clone() for tensor in sums))
        if (host := part.on_host) is not None:
            return Sum(host.stream[layer_index], host.norm[layer_index], host.touched, host.count)
        n, hidden = len(s.norm[:, 0][layer_index]), s.stream.shape[2]
        return Sum(torch.zeros(n, hidden), torch.zeros(n), torch.zeros(()), torch.zeros(()))

    # -- slots -----------------------------------------------------------------------------------------------------

    def _assign_slot(self, part: Part, stop_tokens: Sequence[int], busy: set[int]) -> int:
        """The part's slot; where all are taken, one that this step does not need is put aside on the host. Where there is
        none, the part is lost, and nobody's slot is given."""
        if part.slot is None:
            if not self._free and not self._evict(busy):
                part.lost = True
                return self.sums.slots
            part.slot = slot = self._free.pop()
            s, device = self.sums, self._stop_tokens.device
            for on_device, name in (
                (s.stream[:, slot], "stream"),
                (s.norm[:, slot], "norm"),
                (s.touched[slot], "touched"),
                (s.count[slot], "count"),
            ):
                if part.on_host is None:
                    on_device.zero_()
                else:
                    on_device.copy_(to_device(getattr(part.on_host, name), device))
            part.on_host = None
            self._widen(len(stop_tokens))
            self._stop_tokens[slot] = -1
            stop_ids = torch.tensor(list(stop_tokens), dtype=torch.long)
            self._stop_tokens[slot, : len(stop_tokens)] = to_device(stop_ids, device)
        busy.add(part.slot)
        return part.slot

    def _widen(self, width: int) -> None:
        """Makes places for so many stop tokens: they are looked at between passes, not in the compiled one."""
        if (missing := width - self._stop_tokens.shape[1]) > 0:
            self._stop_tokens = torch.nn.functional.pad(self._stop_tokens, (0, missing), value=-1)

    def _evict(self, busy: set[int]) -> bool:
        evictable = (p for r in self.live.values() for p in r.parts if p.slot is not None and p.slot not in busy)
        part = next(evictable, None)
        if part is None:
            return False
        part.on_host = self._sum_of(part)
        self._release(part, keep=True)
        return True

    def _release(self, part: Part, keep: bool = False) -> None:
        if part.slot is not None:
            self._free.append(part.slot)
        part.slot = None
        if not keep:
            part.on_host = None

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self, order: Sequence[str], scheduled: Sequence[int], computed: Mapping[str, int], ids: Tensor) -> None:
        """Fills the tables for a step. order: requests as their tokens stand in the batch, with how many each has in it,
        and how many it had before; ids: the tokens, `[tokens]`."""
        self._save_projections()
        total = int(sum(scheduled))
        any_live = any(id in self.live for id in order)
        if not any_live and not self._dirty:
            return  # the tables are what they are without requests
        size = max(total, self._dirty)
        rows = np.zeros(size, dtype=np.int64)
        token_slots = np.full(size, self.sums.slots, dtype=np.int64)
        reads, start = False, 0
        pass_values, token_ranges, n_tokens = Step(), list[tuple[int, int]](), 0
        busy = {p.slot for id in order if id in self.live for p in self.live[id].parts if p.slot is not None}
        for id, n in zip(order, scheduled, strict=True):
            request = self.live.get(id)
            if request is not None:
                self._assign_rows(request, computed[id], rows[start : start + n])
                read_ranges = self._assign_slots(request, computed[id], token_slots[start : start + n], busy)
                for part, a, b in read_ranges if request.persona_request.project else ():
                    part.pass_ranges.append((pass_values, n_tokens, n_tokens + b - a))
                    token_ranges.append((start + a, start + b))
                    n_tokens += b - a
                reads |= bool(read_ranges)
            start += n
        self._last_pass = (pass_values, token_ranges) if token_ranges else None
        device = self.sums.slot.device
        self.sums.row[:size] = to_device(torch.from_numpy(rows), device)
        slots = to_device(torch.from_numpy(token_slots), device)
        if reads:
            ended = (ids[:total, None] == self._stop_tokens[slots[:total]]).any(-1)
            slots[:total] = torch.where(ended, self.sums.slots, slots[:total])
            self.sums.count.index_add_(0, slots[:total], torch.ones(total, device=device))
        self.sums.slot[:size] = slots
        self.sums.clamping, self.sums.reading = bool(rows.any()), reads
        if device.type == "cpu":
            read_tokens = (slots[:total] < self.sums.slots).nonzero().flatten()
            self.sums.read_tokens = read_tokens if len(read_tokens) else None
        self._dirty = total if any_live else 0

    def clear_tables(self) -> None:
        """Makes the tables what they are without requests: a pass follows that is nobody's."""
        self._save_projections()
        self.sums.row[: self._dirty] = 0
        self.sums.slot[: self._dirty] = self.sums.slots
        self.sums.read_tokens, self.sums.reading, self._dirty = None, False, 0

    def _assign_rows(self, request: Request, start: int, rows: np.ndarray) -> None:
        """Writes the tokens' rows of clamps, `[tokens]`, of which the first is at position `start`."""
        prompt_row, reply_row = request.rows
        rows[:] = prompt_row
        spans = request.persona_request.spans
        for a, b in spans if spans is not None else ((request.prompt_length, start + len(rows)),):
            rows[max(0, a - start) : max(0, b - start)] = reply_row

    def _assign_slots(
        self, request: Request, start: int, slots: np.ndarray, busy: set[int]
    ) -> list[tuple[Part, int, int]]:
        """Writes the tokens' slots, `[tokens]`, of which the first is at position `start`; the parts that are read, and from
        where to where in them."""
        stop, read_ranges = start + len(slots), []
        stop_tokens = () if request.persona_request.spans is not None else request.stop_tokens
        for part in request.parts:
            a, b = max(part.next, start), stop if part.stop is None else min(part.stop, stop)
            if a < b and not part.lost:
                slots[a - start : b - start] = self._assign_slot(part, stop_tokens, busy)
                part.next = b
                read_ranges.append((part, a - start, b - start))
        return read_ranges
