"""Finds a model's residual stream, reads means from it and intervenes in it while it runs; it knows nothing of roles.

Layer l means the residual stream after decoder layer l, counted from 0 (the paper's section on activations).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from personaspace.errors import ModelError, UsageError
from personaspace.model.interventions import Decaying, Intervention, Where


def text_config(model: Any) -> Any:
    """The configuration of the language model, also inside a multimodal one."""
    return model.config.get_text_config(decoder=True)


def base_model(model: Any) -> Any:
    """The model without its lm_head: what takes token ids and gives the last hidden state."""
    for base in (model.base_model, model.get_decoder()):
        if base is not model and not hasattr(base, "lm_head"):
            return base
    # Some name another part as their base: it is the child that the layers are in.
    layers = find_layers(model)
    return next(child for child in model.children() if any(m is layers for m in child.modules()))


def input_device(model: Any) -> torch.device:
    """Where a model takes its tokens: its embedding's device, also where layers are on several or their weights on none."""
    embedding = model.get_input_embeddings()
    device: torch.device = embedding.weight.device
    if device.type != "meta":
        return device
    # What accelerate keeps elsewhere is brought to that device when it is its turn.
    return torch.device(embedding._hf_hook.execution_device)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, wherever each of them is."""
    return a is b or (a.shape == b.shape and torch.equal(a.cpu(), b.cpu()))


def parameters(module: nn.Module) -> frozenset[str]:
    """The names that a module's forward pass takes."""
    return frozenset(inspect.signature(module.forward).parameters)


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers: the one outermost `ModuleList` as long as `num_hidden_layers`. Raises `ModelError`."""
    config = text_config(model)
    # A family whose layers are counted in halves says how many whole ones there are, too.
    return outermost_list(model, getattr(config, "num_layers", config.num_hidden_layers))


def outermost_list(model: nn.Module, n: int) -> nn.ModuleList:
    """The one `ModuleList` of n modules that is in no other such list. Raises `ModelError`."""
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


def text_layers(model: Any) -> nn.ModuleList:
    """Those of the decoder layers that text passes through, in their order: a family may leave layers for images out of a pass
    that has none. Raises `ModelError`."""
    layers, ran = find_layers(model), set[int]()
    handles = [m.register_forward_pre_hook(lambda _, __, k=k: ran.add(k)) for k, m in enumerate(layers)]
    ids = torch.arange(4, 6, device=input_device(model))[None] % text_config(model).vocab_size
    try:
        with torch.inference_mode():
            base_model(model)(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return layers if len(ran) == len(layers) else nn.ModuleList(layers[k] for k in sorted(ran))


def hidden_of(output: Any) -> Tensor:
    """The residual stream `[batch, tokens, hidden]` in what a decoder layer returned."""
    return output if isinstance(output, Tensor) else output[0]


def check_layers(model: Any, layers: nn.ModuleList) -> None:
    """Holds on a short input that what leaves a layer is what enters the next, that the model's last hidden state comes of the
    last one's output, and that no token hears of those behind it. Raises `ModelError`."""
    base = base_model(model)
    entered: list[Tensor] = []
    outputs: list[Tensor] = []
    last: list[Tensor] = []

    def layer_ran(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        entered.append(args[0] if args else kwargs["hidden_states"])
        outputs.append(hidden_of(output))
        last[:] = [outputs[-1]]

    def module_ran(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # The final norm, and whatever else stands behind the layers: what goes in is what has come out so far.
        if len(outputs) == len(layers) and args and isinstance(output, Tensor) and same_values(args[0], last[0]):
            last[0] = output

    inside = {id(m) for m in layers.modules()}
    handles = [layer.register_forward_hook(layer_ran, with_kwargs=True) for layer in layers]
    handles += [m.register_forward_hook(module_ran) for m in base.modules() if id(m) not in inside]
    ids = torch.arange(4, 9, device=input_device(model))[None] % text_config(model).vocab_size
    try:
        with torch.inference_mode():
            final = hidden_of(base(input_ids=ids, use_cache=False))
            ran, passed = outputs.copy(), last[0].to(final.device)
            outputs.clear()
            entered_next = entered[1 : len(ran)]
            # As long, so that the same products are made: shortened, a fine-tune's vectors differed by 2e-4.
            other_end = torch.cat([ids[:, :3], (ids[:, 3:] + 7) % text_config(model).vocab_size], 1)
            base(input_ids=other_end, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    refused = f"cannot read the residual stream of {type(model).__name__}"
    if shapes := {tuple(h.shape) for h in ran} - {(*ids.shape, text_config(model).hidden_size)}:
        raise ModelError(f"{refused}: its layers hand on {min(shapes)}, not one vector a token")
    if len(ran) != len(layers) or not all(map(same_values, ran, entered_next)):
        raise ModelError(f"{refused}: a layer's output is not the next one's input")
    # Most put it through a module; some normalise it in line.
    in_line = [norm(passed.float(), passed.shape[-1:]) for norm in (nn.functional.rms_norm, nn.functional.layer_norm)]
    near = 1e-3 if final.dtype == torch.float32 else 2e-2
    same = (torch.allclose(h.float(), final.float(), rtol=near, atol=near) for h in (passed, *in_line))
    if passed.shape != final.shape or not any(same):
        raise ModelError(f"{refused}: its last hidden state does not come of the last layer's output")
    before, beginning = (h[:, :3].float() for h in (ran[-1], outputs[-1]))
    # By whole vectors: where a stream has entries of some ten thousands, small ones are what rounding leaves of them.
    if bool(((beginning - before).norm(dim=-1) > near * before.norm(dim=-1)).any()):
        raise ModelError(f"{refused}: its tokens hear of those behind them, so it cannot answer token by token")


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

    groups: row numbers `[rows]` (None: all of them) with what is done to them, in order. places: by `where`, how many of those
    tokens stand before a token in its reply, −1 for one that is none of them, `[rows, tokens]`; empty where that was seen to
    before and nothing decays. touched: `[rows, tokens]`, filled where it is given.
    """

    def __init__(self) -> None:
        self.groups: list[tuple[Tensor | None, tuple[Intervention, ...]]] = []
        self.places: dict[Where, Tensor] = {}
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
                if i.where in self.places:
                    places = self.places[i.where].to(hidden.device)
                    places = places if rows is None else places[rows]
                    changed = i.weakened(after, changed, places) if isinstance(i, Decaying) else changed
                    changed = torch.where(places[..., None] >= 0, changed, after)
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
