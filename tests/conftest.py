"""Tiny random models of each family, a tokenizer made on the spot, and the embedded model loaded once."""

from __future__ import annotations

import functools
import gc
import importlib.util
import json
import os
import threading
from collections import Counter
from collections.abc import Generator
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers import models as families

from endpoint import Endpoint

# Each client makes a context of TLS, which takes 40 ms, though servers here speak plain HTTP.
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
# Those tests have an environment of their own: `make test-vllm`.
# The folder of that name here is found as well, but has no origin.
VLLM = importlib.util.find_spec("vllm")
collect_ignore = [] if VLLM and VLLM.origin else ["vllm"]


SECONDS = {
    "test_experiments": 190,
    "test_serve_fuzz": 140,
    "test_pages": 90,
    "test_readings": 90,
    "test_sums": 85,
    "test_drift": 80,
    "test_smollm2": 70,
    "test_map": 70,
    "test_serve_process": 65,
    "test_serve_load": 60,
    "test_docs": 60,
    "test_serve_compat": 55,
    "test_torture": 40,
    "test_faults": 35,
    "test_jailbreak": 25,
    "test_traits": 18,
}
"""What files with long tests took where they were measured, on a core that others used as well; others are counted at five
seconds for each long test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first: at the end no process is left with one that takes minutes while another has none."""
    long = Counter(item.path for item in items if item.get_closest_marker("long"))
    items.sort(key=lambda item: -SECONDS.get(item.path.stem, 5 * long[item.path]))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What tests import stays: to look for garbage in it, over and over, takes a quarter of the time until they begin."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


SIZE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OLDER = {"vocab_size": 300, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2}

FAMILIES = {
    "llama": lambda: families.llama.LlamaConfig(**SIZE),
    "qwen2": lambda: families.qwen2.Qwen2Config(**SIZE),
    "qwen3": lambda: families.qwen3.Qwen3Config(**SIZE),
    "gemma2": lambda: families.gemma2.Gemma2Config(**SIZE, sliding_window=16),
    "gemma3": lambda: families.gemma3.Gemma3TextConfig(**SIZE, sliding_window=16, sliding_window_pattern=2),
    "mistral": lambda: families.mistral.MistralConfig(**SIZE, sliding_window=16),
    "phi3": lambda: families.phi3.Phi3Config(**SIZE),
    "olmo2": lambda: families.olmo2.Olmo2Config(**SIZE),
    "gpt2": lambda: families.gpt2.GPT2Config(**OLDER, n_embd=32, n_layer=3, n_head=4, n_positions=512),
    "gpt_neox": lambda: families.gpt_neox.GPTNeoXConfig(
        **OLDER, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48
    ),
    # As many experts as layers: the experts' list is as long as the layers' and must not be taken for it.
    "mixtral": lambda: families.mixtral.MixtralConfig(**SIZE, num_local_experts=3, num_experts_per_tok=2),
}

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def make_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Bytes as tokens: any text becomes ids below 300."""
    specials = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(specials + alphabet)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def make_model(family: str, seed: int = 0):
    """A random model of a family, with weights large enough for its replies to vary."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    config.initializer_range = 0.2
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny():
    """A small random engine."""
    from personaspace.engines.transformers.engine import TransformersEngine

    return TransformersEngine(make_model("llama"), make_tokenizer(), id="tiny", rows=8)


@pytest.fixture(scope="session")
def smollm2():
    """The embedded model."""
    from personaspace.engines.transformers.engine import TransformersEngine

    return TransformersEngine.load("smollm2", device="cpu")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A small random model, saved as a user's own would be."""
    folder = tmp_path_factory.mktemp("model")
    make_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_catalog(folder: Path) -> Path:
    """A catalogue of six roles and twelve questions, in our layout."""
    names = ["ghost", "hermit", "clerk", "auditor", "whale", "pilot"]
    rows = [
        {"role": n, "description": f"The {n}.", "instructions": [f"You are a {n}, number {k}." for k in range(5)]}
        for n in names
    ]
    (folder / "roles.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    asked = [{"id": k, "question": f"What is thing {k} to you?"} for k in range(12)]
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(q) for q in asked))
    return folder


@pytest.fixture(scope="session")
def small_catalog(tmp_path_factory) -> Path:
    """See `write_catalog`."""
    return write_catalog(tmp_path_factory.mktemp("catalog"))


@pytest.fixture
def endpoint():
    Endpoint.plan, Endpoint.asked = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
