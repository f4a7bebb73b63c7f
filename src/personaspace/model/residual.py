"""Finds a model's residual stream, reads means from it and intervenes in it while it runs; it knows nothing of roles.

Layer l means the residual stream after decoder layer l, counted from 0 (the paper's section on activations).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from personaspace.errors import ModelError, UsageError
from personaspace.model.interventions import Intervention


def text_config(model: Any) -> Any:
    """The configuration of the language model, also inside a multimodal one."""
    return model.config.get_text_config(decoder=True)


def input_device(model: Any) -> torch.device:
    """Where a model takes its tokens: its embedding's device, also where layers are on several or their weights on none."""
    embedding = model.get_input_embeddings()
    device: torch.device = embedding.weight.device
    if device.type != "meta":
        return device
    # What accelerate keeps elsewhere is brought to that device when it is its turn.
    return torch.device(embedding._hf_hook.execution_device)


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers: the one outermost `ModuleList` as long as `num_hidden_layers`. Raises `ModelError`."""
    n = text_config(model).num_hidden_layers
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n}
    outer = {
        name: m
        for name, m in lists.items()
        if not any(name.startswith(outer_name + ".") for outer_name in lists if outer_name != name)
    }
    if len(outer) != 1:
        names = ", ".join(outer) or "none"
        raise ModelError(
            f"expected one list of {n} decoder layers in {type(model).__name__}, found {len(outer)}: {names}"
        )
    return next(iter(outer.values()))


def hidden_of(output: Any) -> Tensor:
    """The residual stream `[batch, tokens, hidden]` in what a decoder layer returned."""
    return output if isinstance(output, Tensor) else output[0]


def check_layers(model: Any, layers: nn.ModuleList) -> None:
    """Holds on a short input that what leaves a layer is what enters the next, and that the last one's output, put
    through the final norm, is the model's last hidden state. Raises `ModelError`."""
    entered: list[Tensor] = []
    outputs: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        entered.append((args[0] if args else kwargs["hidden_states"]).detach())
        outputs.append(hidden_of(output).detach())

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    ids = torch.arange(4, 9, device=input_device(model))[None] % text_config(model).vocab_size
    try:
        with torch.inference_mode():
            last = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            all_ran = len(outputs) == len(layers)
            # On the CPU: layers may be on several devices.
            flows = all_ran and all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(outputs, entered[1:], strict=False))
            norms = [
                m for _, p in model.named_modules() if any(c is layers for c in p.children()) for m in p.children()
            ]
            normed = all_ran and any(_gives(m, outputs[-1], last) for m in norms if m is not layers)
    finally:
        for handle in handles:
            handle.remove()
    if not (flows and normed):
        fault = (
            "the final norm of the last layer is not its last hidden state"
            if flows
            else "a layer's output is not the next one's input"
        )
        raise ModelError(f"cannot read the residual stream of {type(model).__name__}: {fault}")


def _gives(module: nn.Module, x: Tensor, expected: Tensor) -> bool:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Embedding) or weight is None or weight.shape != x.shape[-1:]:
        return False
    return torch.allclose(module(x).float().cpu(), expected.float().cpu(), rtol=1e-3, atol=1e-3)


class Sink(Protocol):
    """Takes what a layer gave: its place among the layers that are read, and `[batch, tokens, hidden]`."""

    def __call__(self, k: int, hidden: Tensor) -> None: ...


@contextmanager
def reading(layers: nn.ModuleList, read: Sequence[int], sink: Sink) -> Iterator[None]:
    """While it lasts, every forward pass hands the residual stream of the layers in `read` to `sink`, as it stands."""

    def tap(k: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            sink(k, hidden_of(output))

        return hook

    handles = [layers[layer].register_forward_hook(tap(k)) for k, layer in enumerate(read)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Intervening:
    """Applies interventions in the layers' hooks, each to the rows of the forward pass that it is meant for.

    groups: row numbers `[rows]` (None: all of them) with what is done to them, in order. generated: `[rows, tokens]`, which
    tokens are generated ones; None where that was seen to before. touched: `[rows, tokens]`, filled where it is given.
    """

    def __init__(self) -> None:
        self.groups: list[tuple[Tensor | None, tuple[Intervention, ...]]] = []
        self.generated: Tensor | None = None
        self.touched: Tensor | None = None

    def __call__(self, layer: int, hidden: Tensor) -> Tensor | None:
        """The residual stream after the interventions at a layer; None where there are none."""
        result: Tensor | None = None
        for rows, interventions in self.groups:
            here = [i for i in interventions if layer in i.layers_touched()]
            if not here:
                continue
            rows = None if rows is None else rows.to(hidden.device)
            before = hidden if rows is None else hidden[rows]
            after = before
            for i in here:
                changed = i.apply(after, layer)
                if i.where == "generated" and self.generated is not None:
                    generated = self.generated.to(hidden.device)
                    mask = generated if rows is None else generated[rows]
                    changed = torch.where(mask[..., None], changed, after)
                after = changed
            if self.touched is not None:
                touched_rows = slice(None) if rows is None else rows.to(self.touched.device)
                self.touched[touched_rows] |= (after != before).any(-1).to(self.touched.device)
            if rows is None:
                result = after
            else:
                result = hidden.clone() if result is None else result
                result[rows] = after
        return result

    @contextmanager
    def on(self, layers: nn.ModuleList) -> Iterator[None]:
        """While it lasts, every forward pass goes through it. Afterwards the model is as it was, also after an exception."""

        def tap(layer: int) -> Callable[..., Any]:
            def hook(_: nn.Module, __: Any, output: Any) -> Any:
                changed = self(layer, hidden_of(output)) if self.groups else None
                if changed is None:
                    return None
                return changed if isinstance(output, Tensor) else (changed, *output[1:])

            return hook

        handles = [layer.register_forward_hook(tap(k)) for k, layer in enumerate(layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def check_interventions(interventions: Sequence[Intervention], layers: int, hidden: int) -> None:
    """Raises `UsageError` for one that acts on a layer that does not exist, or on vectors of another size."""
    for i in interventions:
        name = type(i).__name__
        beyond = [layer for layer in i.layers_touched() if layer >= layers]
        if beyond:
            raise UsageError(f"{name} at layers {beyond}: the model has layers 0 to {layers - 1}")
        if i.vector.shape[-1] != hidden:
            raise UsageError(
                f"{name}: a vector of {i.vector.shape[-1]} numbers; the model's residual stream has {hidden}"
            )


@contextmanager
def attach(model: nn.Module, *interventions: Intervention) -> Iterator[None]:
    """While it lasts, any forward pass or `generate` of a `transformers` model of yours has the interventions on.

    Those for generated tokens alone act on passes of a single token, which is how `generate` makes them. Afterwards the model
    is as it was. Raises `UsageError`, `ModelError`.
    """
    layers = find_layers(model)
    check_interventions(interventions, len(layers), text_config(model).hidden_size)
    applied = Intervening()
    everywhere = tuple(i for i in interventions if i.where == "all")

    def choose(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        applied.groups = [(None, tuple(interventions) if hidden.shape[1] == 1 else everywhere)]

    handle = layers[0].register_forward_pre_hook(choose, with_kwargs=True)
    try:
        with applied.on(layers):
            yield
    finally:
        handle.remove()


class RunningMeans:
    """Sums, row by row, of the residual stream and of its norm over tokens that arrive one a step, in fp32.

    Its size is layers × rows × hidden, however long the replies become. `last` is the last token's own, `[layers, rows,
    hidden]`: a hook only copies into it, and one sum a step takes in all layers. `counting` says which rows' token counts.
    """

    def __init__(self, rows: int, layers: int, hidden: int, device: torch.device) -> None:
        self.sums = torch.zeros(layers, rows, hidden, device=device)
        self.last = torch.zeros_like(self.sums)
        self.norms = torch.zeros(layers, rows, device=device)
        self.counts = torch.zeros(rows, dtype=torch.long, device=device)
        self.counting: Tensor | None = None  # [rows in flight], 0 or 1; None where all count

    def __call__(self, k: int, hidden: Tensor) -> None:
        self.last[k, : len(hidden)] = hidden[:, -1]

    def step(self, rows: int) -> None:
        """Takes in the token that was just read of the first `rows` rows."""
        token = self.last[:, :rows]
        if self.counting is not None:
            # Not multiplied by the flag: what does not count may be NaN.
            token = token.masked_fill(self.counting[None, :, None] == 0, 0)
        self.sums[:, :rows] += token
        self.norms[:, :rows] += torch.linalg.vector_norm(token, dim=-1)
        self.counts[:rows] += 1 if self.counting is None else self.counting.long()

    def mean(self, row: int) -> tuple[Tensor, Tensor]:
        """A row's mean activation `[layers, hidden]` and mean norm `[layers]`; zeros where it has no token."""
        n = self.counts[row].clamp(min=1)
        return (self.sums[:, row] / n).cpu(), (self.norms[:, row] / n).cpu()

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copies rows onto others, as rows that leave are replaced."""
        s, t = list(source), list(target)
        self.counts[t] = self.counts[s]
        for buffer in (self.sums, self.norms):
            buffer[:, t] = buffer[:, s]

    def clear(self, rows: slice) -> None:
        """Empties rows for those that join."""
        self.counts[rows] = 0
        for buffer in (self.sums, self.norms):
            buffer[:, rows] = 0


class SpanMeans:
    """Means of the residual stream over given spans of a batch, `[spans, layers, hidden]`, pooled as each layer runs.

    weights: `[spans, tokens]` over the flattened spans' own rows, each row summing to one; `rows` says whose they are.
    ranges: where given, as (row, start, end), each token's own is kept in `each`, a list over spans of one over layers.
    """

    def __init__(
        self,
        weights: Tensor,
        rows: Tensor,
        layers: int,
        hidden: int,
        ranges: Sequence[tuple[int, int, int]] | None = None,
    ) -> None:
        self.weights, self.rows, self.ranges = weights, rows, ranges or []
        self.each: list[list[Tensor]] = [[] for _ in self.ranges]
        self.means = torch.empty(len(rows), layers, hidden, device=weights.device)
        self.norms = torch.empty(len(rows), layers, device=weights.device)

    def __call__(self, k: int, hidden: Tensor) -> None:
        norm = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
        weights = self.weights.to(
            hidden.device
        )  # where the layer is: what is pooled is small, and goes to where means are
        self.norms[:, k] = (norm[self.rows.to(hidden.device)] * weights).sum(-1)
        for span, row in enumerate(self.rows.tolist()):
            self.means[span, k] = weights[span] @ hidden[row].float()
        for token_states, (row, a, b) in zip(self.each, self.ranges, strict=True):
            token_states.append(hidden[row, a:b].float())
