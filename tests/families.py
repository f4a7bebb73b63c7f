"""Every causal language model of the installed `transformers`, made small and random from its own configuration.

`python tests/families.py` prints the table of docs/families.md.
"""

from __future__ import annotations

import copy
import inspect

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS = 4
WIDTH = dict.fromkeys(
    "hidden_size d_model n_embd embed_dim embedding_dim emb_dim attention_hidden_size lru_width".split(), 32
)
INNER = dict.fromkeys("intermediate_size ffn_dim n_inner dff dim_ff d_inner decoder_ffn_dim".split(), 48)
DEPTH = dict.fromkeys(
    "num_hidden_layers n_layer n_layers num_layers decoder_layers num_blocks num_decoder_layers".split(), 4
)
HEADS = dict.fromkeys("num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads".split(), 4)
HEAD_SIZE = dict.fromkeys(
    "head_dim kv_channels dim_head attention_head_dim attention_head_size d_head v_head_dim qk_rope_head_dim "
    "qk_nope_head_dim linear_key_head_dim linear_value_head_dim mamba_d_head mamba_head_dim mamba_headdim "
    "index_head_dim indexer_head_dim".split(),
    8,
)
CONTEXT = dict.fromkeys(
    "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length".split(), 512
)
EXPERTS = dict.fromkeys("num_experts num_local_experts n_routed_experts moe_num_experts".split(), 4)
CHOSEN = dict.fromkeys("num_experts_per_tok num_experts_per_token moe_topk moe_k".split(), 2)
ONE = dict.fromkeys(
    "n_group num_expert_group topk_group n_shared_experts mamba_n_groups n_groups mamba_ngroups".split(), 1
)
WINDOW = dict.fromkeys("sliding_window attention_window_size window_size attention_chunk_size".split(), 16)
STATE = dict.fromkeys("mamba_d_state ssm_state_size state_size mamba_chunk_size chunk_size block_size".split(), 8)
SIZES = {
    **WIDTH, **INNER, **DEPTH, **HEADS, **HEAD_SIZE, **CONTEXT, **EXPERTS, **CHOSEN, **ONE, **WINDOW, **STATE,
    "vocab_size": 300, "vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8, "num_key_value_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "rotary_dim": 4, "qk_head_dim": 16, "q_lora_rank": 16,
    "kv_lora_rank": 16, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "first_k_dense_replace": 1,
    "index_n_heads": 2, "index_topk": 64, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_budget": 64,
    "indexer_compress_ratio": 4, "mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_dt_rank": 4, "time_step_rank": 4,
    "n_mamba_heads": 2, "mamba_d_ssm": 64, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "ffn_round_up_to_multiple_of": 8, "dim_model_base": 16, "num_kv_shared_layers": 0, "is_decoder": True,
    "encoder_hash_byte_group_vocab": 50,
}  # fmt: skip
LISTS = ("layer_types", "layers_block_type", "mlp_layer_types")

ALL_HEADS = {"num_key_value_heads": 4}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OWN = {
    **dict.fromkeys(
        "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 dots3_note dots3_note_text glm4_moe_lite glm_moe_dsa "
        "kimi_linear longcat_flash minicpm3 youtu".split(),
        ALL_HEADS,
    ),
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
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4, "n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family's configuration needs besides."""

KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def make_config(kind: str):
    """A family's configuration of four layers, or as many as it has kinds of."""
    text = CONFIG_MAPPING[kind]().get_text_config(decoder=True)
    defaults, names = text.to_dict(), getattr(type(text), "attribute_map", {})
    takes = {*defaults, *names, *inspect.signature(type(text).__init__).parameters}
    values = {name: size for name, size in SIZES.items() if name in takes and names.get(name) not in SIZES}
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
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    model = getattr(transformers, name if isinstance(name, str) else name[0])(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.add_(0.2 * torch.randn_like(weight))
    return model
