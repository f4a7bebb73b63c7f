"""How long the longest conversation of a map can become, in tokens: what an engine must have room for."""

from __future__ import annotations

from personaspace.catalog import Catalog
from personaspace.engines.chat import Chat

JOINTS = 16
"""Tokens that texts may take more together than each by itself, and a model's own name in the default's."""


def longest_conversation(catalog: Catalog, chat: Chat, max_new_tokens: int) -> int:
    """Tokens of the longest instruction with the longest question, as the template has them, and of the longest reply."""
    instructions = [t for t in (*catalog.defaults, *(t for r in catalog.roles for t in r.instructions)) if t]
    questions = [q.question for q in catalog.questions]
    instruction, question = (max(texts, key=lambda t: len(chat.text_ids(t))) for texts in (instructions, questions))
    messages = ({"role": "system", "content": instruction}, {"role": "user", "content": question})
    return len(chat.prompt_ids(messages)) + JOINTS + max_new_tokens
