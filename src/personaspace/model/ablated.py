"""Takes a direction out of a model's weights: out of everything that writes into its residual stream, so that no pass needs a
hook. It knows nothing of spaces.

W ← (I − v·vᵀ)·W, v of unit length, for token and position embeddings and for each matrix (and bias) by which attention and MLP
write (Arditi et al., arXiv 2406.11717, the section on weight orthogonalization). This does somewhat more than `Ablate` at every
layer, which leaves the embeddings alone, and what attention writes until the MLP behind it has read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from personaspace.errors import ModelError, UsageError
from personaspace.model.adapters import is_quantized
from personaspace.model.residual import base_model, find_layers, input_device, reading, text_config

WRITERS = (
    *("o_proj", "out_proj", "c_proj", "dense", "wo", "w2"),
    *("down_proj", "dense_4h_to_h", "fc2", "fc_out", "output_linear", "lin2", "linear_2"),
)
"""What families call the last matrix of their attention and of their MLP. Whether these are all is measured afterwards."""

ALLOWED = {torch.float32: 1e-4, torch.float64: 1e-4}
ALLOWED_ROUNDED = 2e-2
"""What share of the residual stream may still lie along the direction after each layer: what rounding leaves, in fp32 and in
half precision."""


@dataclass(frozen=True)
class AblatedWeights:
    """names: of the tensors that were changed. untied: whether the lm_head was the embedding, and is now a matrix of its own.
    before, after: the largest share of the residual stream that lies along the direction behind a layer, on a short text."""

    names: tuple[str, ...]
    untied: bool
    before: float
    after: float


@torch.no_grad()
def ablate_weights(model: Any, vector: Tensor) -> AblatedWeights:
    """Takes a direction `[hidden]` out of what writes into the residual stream, in place. Where the lm_head is the embedding,
    it becomes a copy of what it was: it reads the stream, and what it reads stays as it is.

    Raises `UsageError` for another size; `ModelError` for packed weights, and where the stream holds the direction all the
    same: a norm of the layers' own behind what they write (Gemma 2 and 3, OLMo 2) puts it back.
    """
    hidden = text_config(model).hidden_size
    if vector.shape != (hidden,) or not torch.isfinite(vector).all() or not float(vector.norm()):
        raise UsageError(f"expected a finite vector of {hidden} numbers, not zero, found shape {list(vector.shape)}")
    if is_quantized(model):
        raise ModelError("a direction cannot be taken out of packed weights; expected whole ones (bf16, fp16 or fp32)")
    unit = vector.double() / vector.double().norm()
    before = _share_along(model, unit)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    untied = head is not None and head.weight is embedding.weight
    if untied:
        head.weight = nn.Parameter(embedding.weight.clone(), requires_grad=False)
        for config in {id(c): c for c in (model.config, text_config(model))}.values():
            config.tie_word_embeddings = False
    names = []
    for name, tensor, dim in _written_by(model, hidden):
        along = unit.to(tensor.device)
        wide = tensor.movedim(dim, -1).double()
        tensor.copy_((wide - (wide @ along)[..., None] * along).movedim(-1, dim))
        names.append(name)
    after, allowed = _share_along(model, unit), ALLOWED.get(model.dtype, ALLOWED_ROUNDED)
    if after > allowed:
        raise ModelError(
            f"{type(model).__name__}: with the direction taken out of {len(names)} tensors, {after:.1%} of the residual stream "
            f"still lies along it ({before:.1%} before, expected under {allowed:.2%}): its layers have a norm of their own "
            "behind what they write, or write by matrices of other names; ablate it while the model runs instead"
        )
    return AblatedWeights(tuple(names), untied, before, after)


def _written_by(model: Any, hidden: int) -> Iterator[tuple[str, Tensor, int]]:
    """Every tensor that writes into the stream: its name, itself, and which dimension is the stream's."""
    layers = find_layers(model)
    inside = {id(module) for module in layers.modules()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in base_model(model).modules():
        if isinstance(module, nn.Embedding) and id(module) not in inside and module.embedding_dim == hidden:
            yield names[id(module.weight)], module.weight, 1
    for path, module in layers.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        if path.rpartition(".")[2] in WRITERS and "weight" in parameters:
            weight = parameters["weight"]
            if weight.dim() == 3:
                yield names[id(weight)], weight, _stream_dim(weight, hidden)
            else:
                # GPT-2's `Conv1D` is laid the other way round.
                dim = 1 if hasattr(module, "nf") else 0
                if weight.shape[dim] == hidden:
                    yield names[id(weight)], weight, dim
                    if parameters.get("bias") is not None:
                        yield names[id(parameters["bias"])], parameters["bias"], 0
        for name, tensor in parameters.items():
            # Experts side by side, `[experts, …]`, with their biases `[experts, hidden]`.
            if name in WRITERS and tensor.dim() == 3:
                yield names[id(tensor)], tensor, _stream_dim(tensor, hidden)
            elif name.removesuffix("_bias") in WRITERS and tensor.dim() == 2 and tensor.shape[1] == hidden:
                yield names[id(tensor)], tensor, 1


def _stream_dim(experts: Tensor, hidden: int) -> int:
    return 1 if experts.shape[1] == hidden else 2


def _share_along(model: Any, unit: Tensor) -> float:
    """The largest |⟨h, v⟩|/‖h‖ behind a layer, over tokens of a text of 16."""
    layers, device = find_layers(model), input_device(model)
    shares: list[float] = []

    def sink(k: int, hidden: Tensor) -> None:
        wide = hidden.double()
        shares.append(float(((wide @ unit.to(wide.device)).abs() / wide.norm(dim=-1).clamp(min=1e-30)).max()))

    ids = torch.arange(4, 20, device=device)[None] % text_config(model).vocab_size
    with reading(layers, range(len(layers)), sink):
        base_model(model)(input_ids=ids, use_cache=False)
    return max(shares)
