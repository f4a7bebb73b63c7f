"""vLLM's server with a model that thinks: what is told of a reply is of its answer, as a plain pass reads that."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import torch
from tiny import FAMILIES, TEMPLATE, make_tokenizer
from transformers import AutoModelForCausalLM

from personaspace.engines.chat import Span
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.space import PersonaSpace
from personaspace.space.layout import FORMAT
from vllm_server import vllm_served

OPENS = (
    TEMPLATE + "{% if add_generation_prompt %}<think>\n{% if not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}"
)
FLOOR = 50.0
"""Above all that the model's tokens come to."""
ON = {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model that thinks, and beside it a space that fits it."""
    folder = tmp_path_factory.mktemp("thinks") / "model"
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = OPENS
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = FAMILIES["llama"]()
    config.vocab_size = len(tokenizer)
    model = AutoModelForCausalLM.from_config(config).float()
    model.save_pretrained(folder)
    engine = TransformersEngine(model, tokenizer, id=str(folder))
    vectors = torch.randn(6, 3, 128)
    default = vectors.mean(0) + 2 * torch.randn(3, 128)
    tensors = {"role_vectors": vectors, "default_vector": default, "axis": default - vectors.mean(0)}
    about = {"id": str(folder), "fingerprint": engine.info.fingerprint, "notes": {"thinking": "off"}}
    meta = {"format": FORMAT, "model": about, "layer": 1, "roles": [f"r{k}" for k in range(6)]}
    meta["caps"] = {"high": {"layers": [1], "floors": [FLOOR]}}
    PersonaSpace(meta, tensors).save(folder.parent / "space.safetensors")
    return folder


def test_a_thinking_replys_persona_is_its_answers_streamed_and_not(folder: Path) -> None:
    space_file = folder.parent / "space.safetensors"
    space = PersonaSpace.load(space_file)
    engine = TransformersEngine.load(str(folder), dtype="fp32")
    closing = engine.tokenizer.convert_tokens_to_ids("</think>")
    name, thought = folder.name, 0
    with vllm_served(str(space_file)) as address, httpx.Client(base_url=address, timeout=120) as client:

        def ask(question: str, **more: object) -> dict:
            asked = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24}
            return {"model": model, **asked, "logit_bias": {str(closing): 2.0}, **more}

        model = client.get("/v1/models").json()["data"][0]["id"]
        assert name in model
        for question in ("why?", "who are you?", "what is it?", "where?"):
            way = {**ON, "persona": {"report": "token"}}
            whole = client.post("/v1/chat/completions", json=ask(question, return_token_ids=True, **way)).json()
            prompt, ids = whole["prompt_token_ids"], whole["choices"][0]["token_ids"]
            start, end = engine.chat.splitter(prompt).follow(ids).answer
            persona = whole["persona"]
            end = min(end, start + (persona["tokens_read"] if persona else 0))
            if start == end:
                assert persona is None
                continue
            thought += start > 2
            assert persona["span"] == "answer"
            assert 0 <= len(ids) - end <= 1  # the newest token is not read
            span = Span((*prompt, *ids[:end]), ((len(prompt) + start, len(prompt) + end),))
            ((turn,),) = engine.replay([span], read=[1])
            expected = space.read(turn.activation[0]).projection
            assert persona["projection"] == pytest.approx(expected, rel=1e-3, abs=1e-3)
            assert [t["index"] for t in persona["tokens"]] == list(range(start, end))
            stream = client.post("/v1/chat/completions", json=ask(question, stream=True, **way)).text
            events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
            assert not any("token_ids" in c for e in events for c in e["choices"])  # nobody asked for them
            told = [t["index"] for e in events for t in (e.get("persona") or {}).get("tokens", [])]
            assert told == list(range(start, end))
            last = [e["persona"] for e in events if "projection" in (e.get("persona") or {})][-1]
            assert last["projection"] == pytest.approx(expected, rel=1e-3, abs=1e-3)
            held = client.post("/v1/chat/completions", json=ask(question, **ON, persona={"cap": "high"})).json()[
                "persona"
            ]
            if held is not None:
                assert held["capped_tokens"] == held["tokens_read"] > 0
                assert held["projection"] == pytest.approx(FLOOR, rel=1e-3)
        off = client.post("/v1/chat/completions", json=ask("why?")).json()
        assert off["persona"]["span"] == "answer"
        assert "prompt_token_ids" not in off
    assert thought > 0
