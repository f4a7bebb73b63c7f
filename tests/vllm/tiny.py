"""Tiny random models of each family, in folders that both engines load."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers import models as families

# vLLM's CPU attention takes heads of at least 32.
SIZE = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.15,
}
FAMILIES = {
    "llama": lambda: families.llama.LlamaConfig(**SIZE),
    "qwen2": lambda: families.qwen2.Qwen2Config(**SIZE),
    "qwen3": lambda: families.qwen3.Qwen3Config(**SIZE),
    "gemma2": lambda: families.gemma2.Gemma2Config(**SIZE, sliding_window=64, query_pre_attn_scalar=32),
    "gemma3": lambda: families.gemma3.Gemma3TextConfig(
        **SIZE, sliding_window=64, sliding_window_pattern=2, query_pre_attn_scalar=32
    ),
    "mistral": lambda: families.mistral.MistralConfig(**SIZE, sliding_window=None),
    "phi3": lambda: families.phi3.Phi3Config(**SIZE),
    "olmo2": lambda: families.olmo2.Olmo2Config(**SIZE),
    "gpt2": lambda: families.gpt2.GPT2Config(
        vocab_size=300, n_embd=128, n_layer=3, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2,
        initializer_range=0.15,
    ),
    "cohere": lambda: families.cohere.CohereConfig(**{k: v for k, v in SIZE.items() if k != "head_dim"}),
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens: any text becomes ids below 300."""
    specials = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    more = [f"<{k}>" for k in range(300 - len(specials) - len(alphabet))]
    inner = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(specials + alphabet + more)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_model(family: str, folder: Path) -> str:
    """A random model of the family, in a folder."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]()).float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                p.add_(torch.randn_like(p) * 0.1)  # so that a norm that is left out shows
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)
