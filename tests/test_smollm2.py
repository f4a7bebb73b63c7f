"""Claims on the embedded model: it loads from its package, writes as itself and as others, and reads the same twice."""

from __future__ import annotations

import torch

from personaspace.engines import Span
from personaspace.prompts import Prompt, Sampling

ASKED = [
    (
        "You are a pirate, arr, with a cutlass, a grudge, and a map tattooed on another man's back.",
        "What would you do with a fortune?",
    ),
    ("", "How do I boil an egg?"),
    ("You are a ghost. You died in this house and nobody has heard you, until now.", "Who are you?"),
    ("", "What is the capital of France?"),
]


def prompts() -> list[Prompt]:
    made = []
    for k, (system, user) in enumerate(ASKED * 3):
        first = [{"role": "system", "content": system}] if system else []
        made.append(Prompt((*first, {"role": "user", "content": user + " " * (k // 4)}), index=k, seed=k))
    return made


def test_the_model_answers_in_words_and_puts_in_its_own_system_prompt(smollm2):
    answers = {r.prompt.index: r.text for r in smollm2.respond(prompts(), Sampling(temperature=0, max_new_tokens=24))}
    assert "Paris" in answers[3]
    assert "SmolLM" in smollm2.model.notes["beginning"]
    assert (smollm2.model.layers, smollm2.model.hidden) == (30, 576)


def test_respond_reads_what_replay_and_a_plain_loop_read(smollm2):
    answers = list(smollm2.respond(prompts(), Sampling(max_new_tokens=24), read=range(30)))
    spans = []
    for r in answers:
        ids = smollm2.chat.prompt_ids(r.prompt.messages)
        spans.append(Span((*ids, *r.token_ids), ((len(ids), len(ids) + len(r.token_ids)),)))
    for r, span, (turn,) in zip(answers, spans, smollm2.replay(spans, read=range(30)), strict=True):
        a, b = span.spans[0]
        with torch.inference_mode():
            states = smollm2.network(
                torch.tensor([span.token_ids]), output_hidden_states=True, use_cache=False
            ).hidden_states
        plain = torch.stack([h[0, a:b].mean(0) for h in states[1:-1]])  # the last of them has been through the norm
        for read in (r.activation, turn.activation):
            assert torch.cosine_similarity(read[:-1], plain, dim=-1).min() >= 0.9999
            assert ((read[:-1] - plain).norm(dim=-1) / plain.norm(dim=-1)).max() <= 1e-3
        assert torch.cosine_similarity(r.activation, turn.activation, dim=-1).min() >= 0.9999


def test_the_same_seed_gives_the_same_replies(smollm2):
    texts = [[r.token_ids for r in smollm2.respond(prompts(), Sampling(max_new_tokens=8))] for _ in range(2)]
    assert texts[0] == texts[1]
