"""A small model that calls tools: it has learnt by heart what to answer whom, in each known form of calls."""

from __future__ import annotations

import pytest
import torch

from conftest import make_model, make_tokenizer
from personaspace.engines.transformers.engine import TransformersEngine

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
OFFERED = "{% if tools %}{{ tools[0].function.name }}{{ tools[0].function.parameters | tojson }}\n{% endif %}"
TURNS = (
    OFFERED + "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "(call {{ c.function.name }} {{ c.function.arguments | tojson }}){% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = '{"name": function name, "parameters": object}'
FORMS = {
    # What the template mentions, its markers that are tokens, and what is answered.
    "hermes": (
        "<tool_call>",
        ["<tool_call>", "</tool_call>"],
        'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>',
    ),
    "list": ("<tool_call>", [], '<tool_call>[{"name": "add", "arguments": {"a": 2}}]</tool_call>'),
    "xml": (
        "<tool_call><function=",
        [],
        "<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n</function>\n</tool_call>",
    ),
    "mistral": ("[TOOL_CALLS]", ["[TOOL_CALLS]"], '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 2}}]'),
    "mistral-named": ("[TOOL_CALLS][ARGS]", ["[TOOL_CALLS]", "[ARGS]"], '[TOOL_CALLS]add[ARGS]{"a": 2}'),
    "llama": (LLAMA, ["<|python_tag|>"], '<|python_tag|>{"name": "add", "parameters": {"a": 2}}'),
    "llama-bare": (LLAMA, [], '{"name": "add", "parameters": {"a": 2}}'),
}
"""Forms of calls that are known."""

SPELT = FORMS["hermes"][2]
HERMES = {
    # What is said to the model of that form, and what it answers; `quote` is spelt in ordinary tokens.
    "plain": "Good day.",
    "broken": '<tool_call>\n{"name": "add", "argu</tool_call> or so',
    "quote": SPELT,
}
FORCED = ' {"a": 7}}\n</tool_call>'
"""What follows where the reply to `plain` has to begin with a call."""


def said(text):
    return [{"role": "user", "content": text}]


CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
RESULT = [
    *said("hermes"),
    {"role": "assistant", "content": "Let me see.\n", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "four"},
]
ANSWER = "It is four."


def form_tokenizer(name: str):
    """A tokenizer with a form's markers as special tokens, which a plain decoding leaves out."""
    mentioned, markers, _ = FORMS[name]
    tokenizer = make_tokenizer(TURNS + "{# " + mentioned + " #}")
    # The markers that are no tokens keep their places: one model speaks all forms.
    every = sorted({m for _, added, _ in FORMS.values() for m in added})
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [m if m in markers else f"<{k}>" for k, m in enumerate(every)]}
    )
    return tokenizer


def calling_engine(model, name: str = "hermes") -> TransformersEngine:
    """The model as one of a form's family."""
    return TransformersEngine(model, form_tokenizer(name), id="me/tiny", rows=8)


@pytest.fixture(scope="session")
def calling_model():
    """A model that answers `hermes` with calls in Hermes' form, and so on, and what else stands above."""
    pairs = []
    for name, (_, _, reply) in FORMS.items():
        chat = calling_engine(make_model("llama"), name).chat
        pairs.append((chat.prompt_ids(said(name), [TOOL]), _ids(chat, reply)))
        if name == "hermes":
            pairs += [(chat.prompt_ids(said(text), [TOOL]), _ids(chat, answer)) for text, answer in HERMES.items()]
            pairs.append((chat.prompt_ids(RESULT, [TOOL]), _ids(chat, ANSWER)))
            begun = _ids(chat, chat.call_form.beginning.replace("NAME", "add"))[:-1]
            pairs.append((chat.prompt_ids(said("plain"), [TOOL]) + begun, _ids(chat, FORCED)))
    spelt = make_tokenizer()(SPELT, add_special_tokens=False)["input_ids"]
    pairs[1 + list(HERMES).index("quote")][1][:-1] = spelt
    return learnt(pairs)


def _ids(chat, text: str) -> list[int]:
    tokenizer = chat.tokenizer
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]


def learnt(pairs):
    """A small model that says the second of each pair of token ids after the first."""
    model = make_model("llama").train().requires_grad_(True)
    longest = max(len(a) + len(b) for a, b in pairs)
    ids, labels = torch.zeros(len(pairs), longest, dtype=torch.long), torch.full((len(pairs), longest), -100)
    for k, (before, after) in enumerate(pairs):
        ids[k, : len(before) + len(after)] = torch.tensor(before + after)
        labels[k, len(before) : len(before) + len(after)] = torch.tensor(after)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0)
    for _ in range(400):
        logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if bool(loss.detach() < 0.003):
            return model.eval().requires_grad_(False)
    raise AssertionError(f"not learnt: {loss.detach()}")
