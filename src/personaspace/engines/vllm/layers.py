"""Puts reading and intervening into the forward pass of a vLLM model's decoder layers, as tensor arithmetic that compiles.

A layer's class becomes a subclass of it, made on the spot, whose `forward` goes on after the layer's own: so it holds for
every architecture, and for whatever was done to the layer before. It knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from personaspace.engines.vllm.clamps import Rows
from personaspace.errors import ModelError


class Sums:
    """What is read, on the device: sums over tokens by slot. The last slot takes what nobody asked for.

    stream: `[layers, slots + 1, hidden]`, fp32; norm: `[layers, slots + 1]`; touched, count: `[slots + 1]`; slot: a token's,
    `[tokens]`; row: which moves are made on it, `[tokens]`; hit: whether a move changed it at any layer, `[tokens]`.
    reading: whether somebody reads a token of the step; kept: which, where that can be used; moving: whether moves are made.
    along: a token's projection on `aim`, `[hidden]` of unit length, at layer `project`, `[tokens]`.
    """

    project: int | None = None

    def __init__(self, layers: int, hidden: int, slots: int, tokens: int, device: torch.device) -> None:
        self.slots = slots
        self.stream = torch.zeros(layers, slots + 1, hidden, device=device)
        self.norm = torch.zeros(layers, slots + 1, device=device)
        self.touched = torch.zeros(slots + 1, device=device)
        self.count = torch.zeros(slots + 1, device=device)
        self.slot = torch.full((tokens,), slots, dtype=torch.long, device=device)
        self.row = torch.zeros(tokens, dtype=torch.long, device=device)
        self.hit = torch.zeros(tokens, device=device)
        self.along = torch.zeros(tokens, device=device)
        self.aim = torch.zeros(hidden, device=device)
        self.kept: Tensor | None = None
        self.reading = self.moving = False

    def note(self, hidden: Tensor, residual: Tensor | None, moved: Tensor, layer: int) -> None:
        """Adds tokens' residual stream `[tokens, hidden]` to the sums of their slots; `moved` says by how much each was moved
        at this layer, and after the last layer those that were at any are counted."""
        tokens, last = len(hidden), len(self.stream) - 1
        slot = self.slot[:tokens]
        at: Any = slice(0, tokens)
        if hidden.device.type == "cpu":  # there is no graph to keep whole: tokens that nobody reads are left out
            if self.kept is None:
                return
            if len(self.kept) < tokens:
                hidden, moved, slot, at = hidden[self.kept], moved[self.kept], slot[self.kept], self.kept
                residual = None if residual is None else residual[self.kept]
        elif not self.reading and not torch.cuda.is_current_stream_capturing():
            return  # a graph has to hold the sums, whoever reads
        stream = hidden.float() if residual is None else hidden.float() + residual.float()
        self.stream[layer].index_add_(0, slot, stream)
        self.norm[layer].index_add_(0, slot, torch.linalg.vector_norm(stream, dim=-1))
        if layer == self.project:
            self.along[at] = stream @ self.aim
        if hidden.device.type == "cpu" and not self.moving:
            return
        here = (moved != 0).float()
        self.hit[at] = here if layer == 0 else torch.maximum(here, self.hit[at])
        if layer == last:
            self.touched.index_add_(0, slot, self.hit[at])


class _Running:
    """Whose pass runs in this process: compiled code finds there what it cannot hold, as vLLM's attention finds its cache."""

    sums: Sums | None = None


running = _Running()
_library: Any = torch.library.Library("personaspace", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("note(Tensor hidden, Tensor? residual, Tensor moved, Tensor(a!) mark, int layer) -> ()")


def _note(hidden: Tensor, residual: Tensor | None, moved: Tensor, mark: Tensor, layer: int) -> None:
    """mark: what the op is said to change, so that the compiler keeps it, and in order."""
    if running.sums is not None:
        running.sums.note(hidden, residual, moved, layer)


_library.impl("note", _note, "CPU")
_library.impl("note", _note, "CUDA")
_library.impl("note", lambda *_: None, "Meta")


class Inside(nn.Module):
    """A decoder layer with places for moves and sums; always a base together with the layer's own class."""

    personaspace_pair: bool
    personaspace_layer: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if isinstance(output, Tensor):
            return _within(self, output, None)
        if self.personaspace_pair:
            return (_within(self, output[0], output[1]), *output[1:])
        return (_within(self, output[0], None), *output[1:])


def _within(layer: Any, hidden: Tensor, residual: Tensor | None) -> Tensor:
    """`hidden` `[tokens, hidden]` after the moves (or `[1, tokens, hidden]`, as in models that vLLM takes from `transformers`).
    The residual stream is hidden + residual, the latter left as it is."""
    if hidden.dim() > 2:
        flat = None if residual is None else residual.flatten(0, -2)
        return _within(layer, hidden.flatten(0, -2), flat).reshape(hidden.shape)
    row = layer.personaspace_row[: hidden.shape[0]]
    bounds, which = layer.personaspace_bounds[row], layer.personaspace_which[row]
    after = hidden.float()
    moved = torch.zeros_like(after[:, 0])
    for k in range(bounds.shape[1]):
        unit = layer.personaspace_units[which[:, k]]
        on = ((after if residual is None else after + residual.float()) * unit).sum(-1)
        to = torch.minimum(torch.maximum(on, bounds[:, k, 0]), bounds[:, k, 1]) + bounds[:, k, 2]
        after = after + (to - on)[:, None] * unit
        moved = moved + (to - on).abs()
    after = after.to(hidden.dtype)
    torch.ops.personaspace.note(after, residual, moved, layer.personaspace_mark, layer.personaspace_layer)
    return after


def find_decoder_layers(model: nn.Module, n: int) -> nn.ModuleList:
    """The decoder layers of a vLLM model: its one outermost list of n modules. Raises `ModelError`."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n}
    outer = [
        m for name, m in found.items() if not any(name.startswith(other + ".") for other in found if other != name)
    ]
    if len(outer) != 1:
        raise ModelError(f"expected one list of {n} decoder layers in {type(model).__name__}, found {len(outer)}")
    return outer[0]


def put_inside(layers: nn.ModuleList, rows: Rows, sums: Sums) -> None:
    """Gives every layer its tables and sums, and the forward pass that uses them."""
    classes: dict[type[nn.Module], type[nn.Module]] = {}
    mark = torch.zeros(1, device=sums.slot.device)
    for k, layer in enumerate(layers):
        own = type(layer)
        classes.setdefault(own, type(f"{own.__name__}Inside", (Inside, own), {"__module__": own.__module__}))
        layer.__class__ = classes[own]
        buffers = {
            "row": sums.row,
            "mark": mark,
            "units": rows.units[k],
            "which": rows.which[k],
            "bounds": rows.bounds[k],
        }
        for name, tensor in buffers.items():
            layer.register_buffer(f"personaspace_{name}", tensor, persistent=False)
        vars(layer).update(personaspace_layer=k, personaspace_pair=True)


def settle(model: nn.Module, layers: nn.ModuleList, run: Callable[[], object]) -> None:
    """Finds out whether the residual stream is the sum of what a layer returns, or the first of it: the one that the final
    norm turns into what it gave. run: one pass of the model, uncompiled. Raises `ModelError` where it is neither."""
    left: list[Any] = []
    given: list[tuple[nn.Module, Tensor]] = []
    last = layers[len(layers) - 1]
    beside = [m for parent in model.modules() if any(c is layers for c in parent.children()) for m in parent.children()]

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        left.extend(x.clone() if isinstance(x, Tensor) else x for x in parts)  # norms add in place

    def norm(module: nn.Module, _: Any, output: Any) -> None:
        if left:
            given.append((module, _first(output).clone()))

    handles = [last.register_forward_hook(leave)]
    handles += [m.register_forward_hook(norm) for m in beside if m is not layers]
    try:
        with torch.inference_mode():
            run()
            tensors = [x for x in left if isinstance(x, Tensor)]
            pair = next((p for p in (True, False) if _explains(tensors, p, given)), None)
    finally:
        for handle in handles:
            handle.remove()
    if pair is None:
        raise ModelError(
            f"cannot find the residual stream in {type(model).__name__}: its final norm fits neither the sum of what "
            f"{type(last).__name__} returns nor the first of it"
        )
    for layer in layers:
        vars(layer)["personaspace_pair"] = pair


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _explains(left: list[Tensor], pair: bool, given: list[tuple[nn.Module, Tensor]]) -> bool:
    if not left or (pair and (len(left) < 2 or left[0].shape != left[1].shape)):
        return False
    stream = left[0] + left[1] if pair else left[0]
    return any(
        torch.allclose(_first(module(stream.clone())).float(), output.float(), rtol=1e-2, atol=1e-3)
        for module, output in given[:1]
    )
