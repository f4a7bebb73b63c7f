"""A small random Llama as GGUF files, whole, split, or without some of its tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from transformers import PreTrainedTokenizerFast

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def tensors_of(model: Any) -> dict[str, np.ndarray]:
    """A Llama's weights under GGUF's names, queries and keys turned as llama.cpp has them."""
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    tensors = {}
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        for projection, n in heads.items():
            if projection in name:
                array = array.reshape(n, 2, len(array) // n // 2, -1).swapaxes(1, 2).reshape(array.shape)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        tensors[name.replace("model.layers", "blk")] = np.ascontiguousarray(array)
    return tensors


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    keep: Callable[[str], bool] = lambda name: True,
    split: tuple[int, int] | None = None,
    total: int | None = None,
    settings: bool = True,
) -> Path:
    """Writes one file. split: which part it is, from 0, of how many; total: how many tensors all parts hold; settings: whether
    it has the model's and the tokenizer's."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    if split:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
        writer.add_int32("split.tensors.count", total or 0)
    if settings:
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(10000.0)
        writer.add_vocab_size(config.vocab_size)
        inner = json.loads(tokenizer.backend_tokenizer.to_str())
        tokens = [t for t, _ in sorted(inner["model"]["vocab"].items(), key=lambda pair: pair[1])]
        tokens.append(tokens[4] + tokens[5])  # of the one merge that the format wants
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if t in tokenizer.all_special_tokens else 1 for t in tokens])
        writer.add_token_merges([f"{tokens[4]} {tokens[5]}"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(0)
        writer.add_chat_template(tokenizer.chat_template)
    for name, array in tensors_of(model).items():
        if keep(name):
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_split(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast, stem: str = "tiny") -> list[Path]:
    """The same in three parts, as llama.cpp splits them: the settings are in the first."""
    names = list(tensors_of(model))
    parts = []
    for k in range(3):
        own = set(names[k::3])
        path = folder / f"{stem}-{k + 1:05d}-of-00003.gguf"
        parts.append(write_gguf(path, model, tokenizer, own.__contains__, (k, 3), len(names), settings=k == 0))
    return parts
