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


class DeviceSums:
    """What is read, on the device: sums over tokens by slot. The last slot takes what nobody asked for.

    stream: `[layers, slots + 1, hidden]`, fp32; norm: `[layers, slots + 1]`; touched, count: `[slots + 1]`; slot: a token's,
    `[tokens]`; row: that of its clamps, `[tokens]`; hit: whether a clamp changed it at any layer, `[tokens]`. reading:
    whether somebody reads a token of the step; read_tokens: which, where that can be used; clamping: whether there are clamps.
    projections: each token's on `direction`, `[hidden]` of unit length, at layer `project`, `[tokens]`.
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
        self.projections = torch.zeros(tokens, device=device)
        self.direction = torch.zeros(hidden, device=device)
        self.read_tokens: Tensor | None = None
        self.reading = self.clamping = False

    def note(self, hidden: Tensor, residual: Tensor | None, moved: Tensor, layer: int) -> None:
        """Adds tokens' residual stream `[tokens, hidden]` to the sums of their slots; `moved` says by how much each was moved
        at this layer, and after the last layer those that were at any are counted."""
        tokens, last = len(hidden), len(self.stream) - 1
        slot = self.slot[:tokens]
        token_index: Any = slice(0, tokens)
        if hidden.device.type == "cpu":  # there is no graph to keep whole: tokens that nobody reads are left out
            if self.read_tokens is None:
                return
            if len(self.read_tokens) < tokens:
                token_index = self.read_tokens
                hidden, moved, slot = hidden[token_index], moved[token_index], slot[token_index]
                residual = None if residual is None else residual[token_index]
        elif not self.reading and not torch.cuda.is_current_stream_capturing():
            return  # a graph has to hold the sums, whoever reads
        stream = hidden.float() if residual is None else hidden.float() + residual.float()
        self.stream[layer].index_add_(0, slot, stream)
        self.norm[layer].index_add_(0, slot, torch.linalg.vector_norm(stream, dim=-1))
        if layer == self.project:
            self.projections[token_index] = stream @ self.direction
        if hidden.device.type == "cpu" and not self.clamping:
            return
        changed_here = (moved != 0).float()
        self.hit[token_index] = changed_here if layer == 0 else torch.maximum(changed_here, self.hit[token_index])
        if layer == last:
            self.touched.index_add_(0, slot, self.hit[token_index])


class _Running:
    """Whose pass runs in this process: compiled code finds there what it cannot hold, as vLLM's attention finds its cache."""

    sums: DeviceSums | None = None


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


class InstrumentedLayer(nn.Module):
    """A decoder layer with places for clamps and sums; always a base together with the layer's own class."""

    personaspace_pair: bool
    personaspace_layer: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if isinstance(output, Tensor):
            return _apply_clamps(self, output, None)
        if self.personaspace_pair:
            return (_apply_clamps(self, output[0], output[1]), *output[1:])
        return (_apply_clamps(self, output[0], None), *output[1:])


def _apply_clamps(layer: Any, hidden: Tensor, residual: Tensor | None) -> Tensor:
    """`hidden` `[tokens, hidden]` after the clamps (`[1, tokens, hidden]` in models that vLLM takes from `transformers`). The
    residual stream is hidden + residual, the latter left as it is."""
    if hidden.dim() > 2:
        flat = None if residual is None else residual.flatten(0, -2)
        return _apply_clamps(layer, hidden.flatten(0, -2), flat).reshape(hidden.shape)
    row = layer.personaspace_row[: hidden.shape[0]]
    bounds, which = layer.personaspace_bounds[row], layer.personaspace_which[row]
    after = hidden.float()
    moved = torch.zeros_like(after[:, 0])
    for clamp_index in range(bounds.shape[1]):
        unit = layer.personaspace_units[which[:, clamp_index]]
        projection = ((after if residual is None else after + residual.float()) * unit).sum(-1)
        low, high, shift, gain = bounds[:, clamp_index].unbind(-1)
        inside = torch.minimum(torch.maximum(projection, low), high)
        step = gain * (inside - projection) + shift
        after = after + step[:, None] * unit
        moved = moved + step.abs()
    after = after.to(hidden.dtype)
    torch.ops.personaspace.note(after, residual, moved, layer.personaspace_mark, layer.personaspace_layer)
    return after


def install(layers: nn.ModuleList, rows: Rows, sums: DeviceSums) -> None:
    """Gives every layer its tables and sums, and the forward pass that uses them."""
    classes: dict[type[nn.Module], type[nn.Module]] = {}
    mark = torch.zeros(1, device=sums.slot.device)
    for layer_index, layer in enumerate(layers):
        layer_class = type(layer)
        if layer_class not in classes:
            name = f"{layer_class.__name__}Instrumented"
            classes[layer_class] = type(name, (InstrumentedLayer, layer_class), {"__module__": layer_class.__module__})
        layer.__class__ = classes[layer_class]
        buffers = {
            "row": sums.row,
            "mark": mark,
            "units": rows.units[layer_index],
            "which": rows.which[layer_index],
            "bounds": rows.bounds[layer_index],
        }
        for buffer_name, tensor in buffers.items():
            layer.register_buffer(f"personaspace_{buffer_name}", tensor, persistent=False)
        vars(layer).update(personaspace_layer=layer_index, personaspace_pair=True)


MISFIT = 0.03
"""In half precision the two ways to the final norm differ by under a hundredth of its length; another tensor by most of it."""


def detect_residual_form(model: nn.Module, layers: nn.ModuleList, run_pass: Callable[[], object]) -> None:
    """Finds out whether the residual stream is the sum of what a layer returns, or the first of it: the one that the final
    norm turns into what it gave. run_pass: of the model, uncompiled. Raises `ModelError` where it is neither."""
    layer_outputs: list[Any] = []
    norm_outputs: list[tuple[nn.Module, Tensor]] = []
    last = layers[len(layers) - 1]
    siblings = [
        m for parent in model.modules() if any(c is layers for c in parent.children()) for m in parent.children()
    ]

    def record_layer(_: nn.Module, __: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        layer_outputs.extend(part.clone() if isinstance(part, Tensor) else part for part in parts)  # norms add in place

    def record_norm(module: nn.Module, _: Any, output: Any) -> None:
        if layer_outputs:
            norm_outputs.append((module, _first(output).clone()))

    handles = [last.register_forward_hook(record_layer)]
    handles += [m.register_forward_hook(record_norm) for m in siblings if m is not layers]
    try:
        with torch.inference_mode():
            run_pass()
            tensors = [part for part in layer_outputs if isinstance(part, Tensor)]
            misfits = {is_pair: _misfit(tensors, is_pair, norm_outputs) for is_pair in (True, False)}
    finally:
        for handle in handles:
            handle.remove()
    is_pair = min(misfits, key=lambda form: misfits[form])
    # Not number by number: in half precision a few numbers of many are rounded twice, and the whole is not.
    if misfits[is_pair] > MISFIT:
        raise ModelError(
            f"cannot find the residual stream in {type(model).__name__}: its final norm fits neither the sum of what "
            f"{type(last).__name__} returns nor the first of it"
        )
    for layer in layers:
        vars(layer)["personaspace_pair"] = is_pair


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def _misfit(layer_outputs: list[Tensor], is_pair: bool, norm_outputs: list[tuple[nn.Module, Tensor]]) -> float:
    """By what share of its length the final norm's output differs from that of the stream so read; 1 where it cannot be so."""
    if not norm_outputs or not layer_outputs:
        return 1.0
    if is_pair and (len(layer_outputs) < 2 or layer_outputs[0].shape != layer_outputs[1].shape):
        return 1.0
    stream = layer_outputs[0] + layer_outputs[1] if is_pair else layer_outputs[0]
    module, output = norm_outputs[0]
    difference = _first(module(stream.clone())).float() - output.float()
    return float(difference.norm() / output.float().norm().clamp(min=1e-30))
