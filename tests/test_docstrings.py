"""Every example of a docstring runs and shows what it prints, as a reader would type it, on the model that comes along."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch

import personaspace as ps
from shown import ROOT

SOURCE = ROOT / "src"
NOT_RUN = {
    r"hf://|\bQwen/": "the Hub is needed; tests/test_published.py imports such a folder from disk",
    r"\btrainer\b": "a training is needed; tests/test_watch.py has one",
    r"\./my-lora": "an adapter is needed; tests/test_adapters.py makes such",
}
"""What no example can have here, and who tries it instead."""
SMALLER = {
    r'("susceptibility".*)roles=5': r"\1roles=2, probes=1, controls=0, alphas=(-0.3, 0.0, 0.3), max_new_tokens=4",
    r"prompts=8, tokens=16, repeats=3": "prompts=2, tokens=4, repeats=1",
    r'"gpt-4.1-mini"': '"any", url=ENDPOINT',
    r'"http://127.0.0.1:8000/v1"': "ENDPOINT",
}
"""What an example is cut to, so that it takes seconds, and the endpoint that stands in for another's."""


@cache
def examples() -> dict[str, tuple[str, str]]:
    """By a short name: the module, and the docstring, of whatever in the package has an example."""
    with_example = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                docstring = ast.get_docstring(node)
                if docstring and ">>>" in docstring:
                    name = f"{module.removeprefix('personaspace.')}.{getattr(node, 'name', '')}".strip(".")
                    assert name not in with_example, f"two examples are called {name}"
                    with_example[name] = (module, docstring)
    return with_example


def reason_not_run(docstring: str) -> str | None:
    return next((why for kind, why in NOT_RUN.items() if re.search(kind, docstring)), None)


def test_most_examples_are_run_and_each_reason_not_to_is_needed():
    docstrings = [docstring for _, docstring in examples().values()]
    assert sum(reason_not_run(d) is None for d in docstrings) > 0.9 * len(docstrings) > 100
    assert {reason_not_run(d) for d in docstrings} == {None, *NOT_RUN.values()}


TALK = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "I am an assistant, and I help with what you ask."},
    {"role": "user", "content": "No, who are you really?"},
    {"role": "assistant", "content": "I am the wind in the chimney, and nobody's servant."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smollm2) -> Path:
    """What examples read, and a small run of SmolLM2 among it."""
    root = tmp_path_factory.mktemp("examples")
    small = {"roles": "6", "per_role": 4, "default_responses": 40, "max_new_tokens": 4}
    ps.map(smollm2, root / "runs" / "smollm2", prompts_per_role=2, default_prompts=20, judge="none", **small)
    ps.PersonaSpace.load("smollm2").save(root / "space.safetensors")
    (root / "talk.json").write_text(json.dumps({"messages": TALK}))
    (root / "talk.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}, *TALK[1:2]]}))
    pairs = root / "transcripts" / "case_studies" / "qwen-3-32b"
    pairs.mkdir(parents=True)
    for arm, conversation in (("unsteered", TALK), ("capped", TALK[:2] * 2)):
        study = {"model": "qwen/qwen3-32b", "turns": 4, "conversation": conversation}
        (pairs / f"jailbreak_{arm}.json").write_text(json.dumps(study))
    (root / "tasks.jsonl").write_text('{"prompt": "What is the capital of France?", "answer": "Paris"}')
    (root / "vectors").mkdir()
    torch.save({"vector": torch.randn(64, 5120)}, root / "vectors" / "ghost.pt")
    torch.save(torch.randn(30, 576), root / "sycophancy.pt")
    return root


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n, (_, docstring) in examples().items() if reason_not_run(docstring) is None])
def test_an_example_prints_what_it_shows(name, folder, smollm2, endpoint, monkeypatch):
    module, docstring = examples()[name]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for kind, replacement in SMALLER.items():
        docstring = re.sub(kind, replacement, docstring)
    space = ps.PersonaSpace.load("smollm2")
    prompts = [ps.Prompt(({"role": "user", "content": "Who are you?"},))]
    at_hand = {
        "ps": ps,
        "engine": smollm2,
        "space": space,
        "catalog": ps.load_catalog(),
        "prompts": prompts,
        "conversations": [list(prompts[0].messages)],
        "sampling": ps.Sampling(max_new_tokens=4),
        "chat": smollm2.chat,
        "model": smollm2.model,
        "tokenizer": smollm2.chat.tokenizer,
        "ENDPOINT": endpoint,
    }
    names = {**vars(importlib.import_module(module)), **at_hand}
    example = doctest.DocTestParser().get_doctest(docstring, names, name, None, 0)
    printed: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(example, out=printed.append)
    assert not printed, "".join(printed)
