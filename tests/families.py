"""Every causal language model of the installed `transformers`, made small and random from its own configuration.

`python tests/families.py` prints the table of docs/families.md.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import transformers
from transformers import AutoModelForCausalLM, Gemma4TextConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS = 4


def _sizes(size: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), size)


SIZES = {
    **_sizes(32, "hidden_size d_model n_embd embed_dim embedding_dim emb_dim attention_hidden_size lru_width"),
    **_sizes(48, "intermediate_size ffn_dim n_inner dff dim_ff d_inner decoder_ffn_dim feed_forward_size"),
    **_sizes(4, "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads"),
    **_sizes(
        8, "head_dim kv_channels dim_head attention_head_dim attention_head_size d_head v_head_dim qk_rope_head_dim"
    ),
    **_sizes(8, "qk_nope_head_dim linear_key_head_dim linear_value_head_dim mamba_d_head mamba_head_dim mamba_headdim"),
    **_sizes(
        8,
        "index_head_dim indexer_head_dim mamba_d_state ssm_state_size state_size mamba_chunk_size chunk_size block_size",
    ),
    **_sizes(512, "index_topk max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length"),
    **_sizes(4, "num_experts num_local_experts n_routed_experts moe_num_experts mamba_dt_rank time_step_rank"),
    **_sizes(2, "num_experts_per_tok num_experts_per_token moe_topk moe_k num_key_value_heads n_mamba_heads"),
    **_sizes(
        1, "n_group num_expert_group topk_group n_shared_experts mamba_n_groups n_groups mamba_ngroups bos_token_id"
    ),
    **_sizes(16, "sliding_window attention_window_size window_size attention_chunk_size q_lora_rank kv_lora_rank"),
    **_sizes(16, "moe_intermediate_size shared_expert_intermediate_size dim_model_base qk_head_dim"),
    **_sizes(300, "vocab_size vocab_size_per_layer_input"),
    **_sizes(2, "index_n_heads indexer_n_heads linear_num_key_heads linear_num_value_heads eos_token_id"),
    **_sizes(64, "indexer_budget mamba_d_ssm"),
    **_sizes(0, "pad_token_id num_kv_shared_layers"),
    **_sizes(8, "block_size hidden_size_per_layer_input mamba_n_heads mamba_num_heads ffn_round_up_to_multiple_of"),
    **{"rotary_dim": 4, "indexer_compress_ratio": 4, "indexer_kv_heads": 1, "first_k_dense_replace": 1},
    **{"encoder_hash_byte_group_vocab": 50, "is_decoder": True},
}
DEPTH = _sizes(LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_blocks num_decoder_layers")
LISTS = ("layer_types", "layers_block_type", "mlp_layer_types")

ALL_HEADS = {"num_key_value_heads": 4}
SMALL_PART = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OWN = {
    **dict.fromkeys(["axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32"], ALL_HEADS),
    **dict.fromkeys(["dots3_note", "dots3_note_text", "glm4_moe_lite", "glm_moe_dsa", "kimi_linear"], ALL_HEADS),
    **dict.fromkeys(["longcat_flash", "minicpm3", "youtu"], ALL_HEADS),
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), PLAIN_ROPE)},
    "dbrx": {
        "num_key_value_heads": 2,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "gemma4": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4_text": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "blt": {f"{part}_config": SMALL_PART for part in ("patcher", "encoder", "decoder", "global")},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [16, 32],
        "attn_layers": ["local"] * 4,
        "local_attn_chunk_length": 8,
        "feed_forward_size": 48,
    },
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4, "n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family's configuration needs besides."""

KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@dataclass(frozen=True)
class LeftOut:
    """Why a family cannot be read. refused: what stands in our error; where it is empty, `transformers` itself fails.
    contradicts: whether `generate` says one thing with its cache and another without."""

    reason: str
    refused: str = ""
    contradicts: bool = False


STREAMS = LeftOut("keeps several streams a token, not one between layers", "not one vector a token")
CODES = LeftOut("`generate` takes codes of sound, several at a place; on text it fails")
LEFT_OUT = {
    "blt": LeftOut("`generate` fails on a model without `num_hidden_layers`: bytes are put together to patches"),
    "cpmant": LeftOut(
        "`generate` contradicts itself: with its cache, before which it puts 32 tokens again at every step, it says other "
        "things than without",
        "not one vector a token",
        contradicts=True,
    ),
    "deepseek_v4": STREAMS,
    "gemma3n": STREAMS,
    "gemma3n_text": STREAMS,
    "gemma4_assistant": LeftOut("drafts for another model, whose states it must be given"),
    "hrm_text": LeftOut("goes through two stacks of layers again and again", "expected one list"),
    "hy_v4": STREAMS,
    "inkling2_text": LeftOut("its last hidden state is not its last layer's", "does not come of the last layer"),
    "musicgen": CODES,
    "musicgen_melody": CODES,
    "prophetnet": LeftOut("keeps a stream for each of the n tokens that it foretells", "expected one list"),
    "qwen4_exp": STREAMS,
    "qwen4_exp_text": STREAMS,
    "reformer": LeftOut("keeps two streams that are put together behind the last layer", "does not come of the last"),
    "xlm": LeftOut(
        "has no module a layer: attention and feed-forward stand in lists of their own", "expected one list"
    ),
    "xlnet": LeftOut("keeps `[tokens, batch, hidden]`, for permuted text", "not one vector a token"),
}
WORKING = tuple(kind for kind in KINDS if kind not in LEFT_OUT)


def make_config(kind: str):
    """A family's configuration of four layers, or as many as it has kinds of."""
    if kind == "gemma4_assistant":  # its defaults are none that it takes itself
        shared = {"num_kv_shared_layers": LAYERS, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
        text = Gemma4TextConfig(**{**make_config("gemma4_text").to_dict(), **shared})
        return CONFIG_MAPPING[kind](text_config=text, backbone_hidden_size=32, num_centroids=4)
    text = CONFIG_MAPPING[kind]().get_text_config(decoder=True)
    defaults, names = text.to_dict(), getattr(type(text), "attribute_map", {})
    takes = {*defaults, *names, *inspect.signature(type(text).__init__).parameters}
    values = {name: size for name, size in {**SIZES, **DEPTH}.items() if name in takes and names.get(name) not in SIZES}
    lists = {
        name: list(dict.fromkeys(defaults[name])) for name in LISTS if isinstance(defaults.get(name), list | tuple)
    }
    lists = {name: kinds for name, kinds in lists.items() if kinds}
    layers = max([LAYERS, *map(len, lists.values())])
    values |= {name: layers for name in DEPTH if name in values}
    values |= {name: (kinds * layers)[:layers] for name, kinds in lists.items()}
    if isinstance(defaults.get("rope_parameters"), dict):
        values["rope_parameters"] = copy.deepcopy(defaults["rope_parameters"])
    return type(text)(**{**values, **OWN.get(kind, {})})


def make_family(kind: str, seed: int = 0):
    """A random model of a family, with weights large enough for its replies to vary, its norms' too."""
    torch.manual_seed(seed)
    config = make_config(kind)
    config.initializer_range = 0.2
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        model = AutoModelForCausalLM.from_config(config)
    else:
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
        model = getattr(transformers, name if isinstance(name, str) else name[0])(config)
    model = model.eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.add_(0.2 * torch.randn_like(weight))
    return model


def kept_by(engine) -> str:
    """What an engine's model keeps between tokens, in the table's words."""
    layout = engine.layout
    if not layout.name:
        return "nothing: every token again, one reply at a time"
    if not layout.side_by_side:
        return "a state of its own, one reply at a time"
    return "keys and values" if not layout.recurrent else "keys, values and states" if layout.attends else "states"


def table(kept: Mapping[str, str]) -> str:
    """The page of docs/families.md. kept: what each family that works keeps between tokens."""
    version = transformers.__version__
    lines = [
        "# Families",
        "",
        f"Of the {len(KINDS)} causal language models that transformers {version} knows, {len(kept)} are read and capped.",
        "A test builds each small and random, and holds its replies, readings and caps against plain passes.",
        "A model says itself what it keeps of the tokens that it has seen; no family's name stands in the code.",
        "Layers that text does not pass, as those for images, are not counted among a model's.",
        "",
        "| family | keeps between tokens |",
        "| --- | --- |",
        *(f"| `{kind}` | {kept[kind]} |" for kind in sorted(kept)),
        "",
        f"The other {len(LEFT_OUT)}:",
        "",
        "| family | why not |",
        "| --- | --- |",
        *(f"| `{kind}` | {left.reason} |" for kind, left in sorted(LEFT_OUT.items())),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    from conftest import make_tokenizer
    from personaspace.engines.transformers.engine import TransformersEngine

    print(table({k: kept_by(TransformersEngine(make_family(k), make_tokenizer())) for k in WORKING}), end="")
