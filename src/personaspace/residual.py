"""Finds a model's residual stream and reads means from it while it runs; it knows nothing of tokens or roles.

Layer l means the residual stream after decoder layer l, counted from 0 (the paper's section on activations).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from personaspace.errors import ModelError


def text_config(model: Any) -> Any:
    """The configuration of the language model, also inside a multimodal one."""
    return model.config.get_text_config(decoder=True)


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers: the one outermost `ModuleList` as long as `num_hidden_layers`. Raises `ModelError`."""
    n = text_config(model).num_hidden_layers
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n}
    outer = {
        name: m
        for name, m in found.items()
        if not any(name.startswith(other + ".") for other in found if other != name)
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
    left: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        entered.append((args[0] if args else kwargs["hidden_states"]).detach())
        left.append(hidden_of(output).detach())

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    ids = torch.arange(4, 9, device=next(model.parameters()).device)[None] % text_config(model).vocab_size
    try:
        with torch.inference_mode():
            last = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            whole = len(left) == len(layers)
            flows = whole and all(torch.equal(a, b) for a, b in zip(left, entered[1:], strict=False))
            norms = [
                m for _, p in model.named_modules() if any(c is layers for c in p.children()) for m in p.children()
            ]
            normed = whole and any(_gives(m, left[-1], last) for m in norms if m is not layers)
    finally:
        for handle in handles:
            handle.remove()
    if not (flows and normed):
        what = (
            "the final norm of the last layer is not its last hidden state"
            if flows
            else "a layer's output is not the next one's input"
        )
        raise ModelError(f"cannot read the residual stream of {type(model).__name__}: {what}")


def _gives(module: nn.Module, x: Tensor, expected: Tensor) -> bool:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Embedding) or weight is None or weight.shape != x.shape[-1:]:
        return False
    return torch.allclose(module(x).float(), expected.float(), rtol=1e-3, atol=1e-3)


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


class RunningMeans:
    """Sums, row by row, of the residual stream and of its norm over tokens that arrive one a step, in fp32.

    Its size is rows × layers × hidden, however long the replies become. `counting` says which rows' token counts.
    """

    def __init__(self, rows: int, layers: int, hidden: int, device: torch.device) -> None:
        self.sums = torch.zeros(rows, layers, hidden, device=device)
        self.norms = torch.zeros(rows, layers, device=device)
        self.counts = torch.zeros(rows, dtype=torch.long, device=device)
        self.counting: Tensor | None = None  # [rows in flight], 0 or 1; None where all count

    def __call__(self, k: int, hidden: Tensor) -> None:
        token = hidden[:, -1].float()
        norm = torch.linalg.vector_norm(token, dim=-1)
        if self.counting is not None:
            token, norm = token * self.counting[:, None], norm * self.counting
        self.sums[: len(token), k] += token
        self.norms[: len(token), k] += norm

    def step(self, rows: int) -> None:
        """Counts the token that was just read of the first `rows` rows."""
        self.counts[:rows] += 1 if self.counting is None else self.counting.long()

    def mean(self, row: int) -> tuple[Tensor, Tensor]:
        """A row's mean activation `[layers, hidden]` and mean norm `[layers]`; zeros where it has no token."""
        n = self.counts[row].clamp(min=1)
        return (self.sums[row] / n).cpu(), (self.norms[row] / n).cpu()

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copies rows onto others, as rows that leave are replaced."""
        for buffer in (self.sums, self.norms, self.counts):
            buffer[list(target)] = buffer[list(source)]

    def clear(self, rows: slice) -> None:
        """Empties rows for those that join."""
        for buffer in (self.sums, self.norms, self.counts):
            buffer[rows] = 0


class SpanMeans:
    """Means of the residual stream over given spans of a batch, `[spans, layers, hidden]`, pooled as each layer runs.

    weights: `[spans, tokens]` over the flattened spans' own rows, each row summing to one; `rows` says whose they are.
    """

    def __init__(self, weights: Tensor, rows: Tensor, layers: int, hidden: int) -> None:
        self.weights, self.rows = weights, rows
        self.means = torch.empty(len(rows), layers, hidden, device=weights.device)
        self.norms = torch.empty(len(rows), layers, device=weights.device)

    def __call__(self, k: int, hidden: Tensor) -> None:
        norm = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
        self.norms[:, k] = (norm[self.rows] * self.weights).sum(-1)
        for span, row in enumerate(self.rows.tolist()):
            self.means[span, k] = self.weights[span] @ hidden[row].float()
