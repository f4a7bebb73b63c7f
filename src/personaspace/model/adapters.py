"""Lays adapters (LoRA and its kin) on a model's weights, by `peft`; it knows nothing of names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from personaspace.errors import ModelError, UsageError
from personaspace.model.sources import needs_peft
from personaspace.model.weights import in_one_line


def merged(model: Any, adapter: Path, name: str) -> Any:
    """The model with an adapter's change in its weights; where those are quantised, and cannot take it, with the adapter
    beside each of them. Its layers are where they were. adapter: its folder; name: what the user calls the model.

    Raises `UsageError` without `peft`, `ModelError` where the adapter is for another model or not whole.
    """
    try:
        from peft import PeftModel
        from peft.utils import get_peft_model_state_dict, load_peft_weights
    except ImportError as e:
        raise UsageError(needs_peft(name, e.name or "peft")) from None
    with in_one_line(name), warnings.catch_warnings(action="ignore"):  # what it would warn of is an error here
        tensors = load_peft_weights(str(adapter), device="cpu")
        _make_room(model, tensors)
        adapted = PeftModel.from_pretrained(model, str(adapter), trust_remote_code=False)
        expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        # What is not the adapter's own is a second copy of embeddings that it brings whole.
        own = getattr(adapted.base_model, "prefix", "")
        placeless = [t for t in tensors if own in t and t not in expected]
        if missing := sorted(expected - set(tensors)):
            raise ModelError(
                f"{name}: {len(missing)} of the {len(expected)} tensors of the adapter {adapter} are missing ({missing[0]}, "
                "…): get it anew"
            )
        if placeless:
            raise ModelError(
                f"{name}: the model has no place for {len(placeless)} of the {len(tensors)} tensors of the adapter {adapter} "
                f"({sorted(placeless)[0]}, …): it is for another model"
            )
        if not hasattr(adapted.base_model, "merge_and_unload"):
            kind = adapted.active_peft_config.peft_type.value
            raise ModelError(
                f"{name}: the adapter {adapter} is of {kind}, which changes no weights; expected LoRA or its like"
            )
        whole = adapted.get_base_model() if is_quantized(model) else adapted.merge_and_unload(safe_merge=True)
    return whole


def is_quantized(model: Any) -> bool:
    """Whether a model's weights are kept in fewer bits than it computes in."""
    return getattr(model, "hf_quantizer", None) is not None and bool(getattr(model, "is_quantized", False))


def _make_room(model: Any, tensors: dict[str, Any]) -> None:
    """As many tokens as the adapter's embeddings have, where it comes with tokens of its own."""
    embeddings = [
        t for key, t in tensors.items() if t.dim() == 2 and key.endswith(("embed_tokens.weight", "lm_head.weight"))
    ]
    tokens = max(map(len, embeddings), default=0)
    if tokens > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(tokens, mean_resizing=False)
