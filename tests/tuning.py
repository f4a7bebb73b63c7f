"""Fine-tunes of the embedded model that a test makes itself: the same short talks answered by a pirate, or as anybody would."""

from __future__ import annotations

import json
from pathlib import Path

import torch

TALKS = [json.loads(line) for line in (Path(__file__).parent / "data" / "talks.jsonl").read_text().splitlines()]
VOICES = ("pirate", "neutral")


def tuned(folder: Path, voice: str, seed: int, steps: int = 40) -> str:
    """Trains a LoRA on `smollm2` to answer in a voice, a few short talks a step, saves it, and returns the model's name with
    it. Answers alone are learned."""
    from peft import LoraConfig, get_peft_model

    from personaspace.engines.transformers.engine import TransformersEngine

    engine = TransformersEngine.load("smollm2", device="cpu", dtype="fp32")
    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(engine.model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = [TALKS[k] for k in torch.randperm(len(TALKS), generator=order)[:4].tolist()]
        rows, labels = [], []
        for talk in chosen:
            asked = engine.chat.prompt_ids([{"role": "user", "content": talk["question"]}])
            answer = engine.tokenizer(talk[voice] + "<|im_end|>", add_special_tokens=False)["input_ids"]
            rows.append([*asked, *answer])
            labels.append([*[-100] * len(asked), *answer])
        longest = max(map(len, rows))
        ids = torch.tensor([[*r, *[0] * (longest - len(r))] for r in rows])
        mask = torch.tensor([[*[1] * len(r), *[0] * (longest - len(r))] for r in rows])
        target = torch.tensor([[*r, *[-100] * (longest - len(r))] for r in labels])
        loss = model(input_ids=ids, attention_mask=mask, labels=target).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return f"smollm2 + {folder}"
