"""The formats of transcripts: a function each, which gives the conversations in a value, or None where it has another format.

`registry` says which there are. A list of such values, and the lines of a JSONL file, are taken apart before they come here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from personaspace import json_text
from personaspace.formats.messages import RawConversation, is_message

_SPEAKER = re.compile(r"^[^\S\n]*(System|User|Human|Assistant|AI|Bot)[^\S\n]*:[ \t]*", re.IGNORECASE | re.MULTILINE)


def served(value: Any) -> Sequence[RawConversation] | None:
    """A line of what the server records: messages, and the replies to them, of which each ends a conversation."""
    replies = value.get("replies") if isinstance(value, dict) else None
    conversations = _listed(value, "messages") if isinstance(replies, list) else None
    if not conversations or not all(isinstance(reply, dict) and "text" in reply for reply in replies or ()):
        return None
    messages = conversations[0].messages
    said = [{"role": "assistant", "content": reply["text"]} for reply in replies or ()]
    return [RawConversation([*messages, reply]) for reply in said] or conversations


def openai(value: Any) -> Sequence[RawConversation] | None:
    """A list of messages, or an object with one under `messages`."""
    if isinstance(value, list) and any(is_message(message) and "role" in message for message in value):
        return [RawConversation(value)]
    return _listed(value, "messages")


def sharegpt(value: Any) -> Sequence[RawConversation] | None:
    """A list of `from` and `value`, or an object with one under `conversations`."""
    if isinstance(value, list) and any(map(is_message, value)):
        return [RawConversation(value)]
    return _listed(value, "conversations")


def study(value: Any) -> Sequence[RawConversation] | None:
    """The study's transcripts and replies: a list of messages under `conversation` or `turns`."""
    return _listed(value, "conversation", "turns")


def chatgpt(value: Any) -> Sequence[RawConversation] | None:
    """A conversation of ChatGPT's export: a tree of messages, of which the branch that was shown last is read."""
    nodes = value.get("mapping") if isinstance(value, dict) else None
    if not isinstance(nodes, dict):
        return None
    parents = {name: node.get("parent") for name, node in nodes.items() if isinstance(node, dict)}
    messages, left_out = [], []
    for name in _branch(parents, value.get("current_node")):
        message = nodes[name].get("message")
        if not isinstance(message, dict):
            continue  # the root holds none
        author, content = message.get("author"), message.get("content")
        role = author.get("role") if isinstance(author, dict) else None
        parts = content.get("parts", [content]) if isinstance(content, dict) else content
        about = message.get("metadata")
        if isinstance(about, dict) and about.get("is_visually_hidden_from_conversation"):
            left_out += ["hidden message"] * (parts not in ([""], [], None))
        elif role == "assistant" and message.get("recipient", "all") not in ("all", None):
            messages.append({"role": role, "content": [{"type": "tool_call"}]})
        elif role != "system" or parts not in ([""], [], None):
            messages.append({"role": role, "content": parts})
    return [RawConversation(messages, left_out)]


def claude(value: Any) -> Sequence[RawConversation] | None:
    """A conversation of Claude's export: `sender`, and a text or parts each; of one that branches, the branch shown last."""
    entries = value.get("chat_messages") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        return None
    leaf = value.get("current_leaf_message_uuid")
    by_id = {
        entry["uuid"]: entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("uuid"), str)
    }
    if isinstance(leaf, str) and leaf in by_id and all("parent_message_uuid" in entry for entry in by_id.values()):
        parents = {name: entry["parent_message_uuid"] for name, entry in by_id.items()}
        entries = [by_id[name] for name in _branch(parents, leaf)]
    messages, left_out = [], []
    for entry in entries:
        if not isinstance(entry, dict):
            raise ValueError(
                f"found {type(entry).__name__} among its messages, expected an object with sender and text"
            )
        for attached in (entry.get("attachments"), entry.get("files")):
            left_out += ["attachment"] * len(attached) if isinstance(attached, list) else []
        # Older exports have the text alone; newer ones have it again as parts, or as parts alone.
        content = entry.get("content") or entry.get("text")
        messages.append({"role": entry.get("sender", entry.get("role")), "content": content})
    return [RawConversation(messages, left_out)]


def inspect_log(value: Any) -> Sequence[RawConversation] | None:
    """A log of Inspect's, as JSON: samples with messages."""
    samples = value.get("samples") if isinstance(value, dict) else None
    if not isinstance(samples, list):
        return None
    return [conversation for sample in samples for conversation in _listed(sample, "messages") or ()] or None


def lm_eval_sample(value: Any) -> Sequence[RawConversation] | None:
    """A sample that lm-eval logged: the messages that it sent, as JSON in a text, and the first reply."""
    if not isinstance(value, dict) or not {"arguments", "resps"} <= value.keys():
        return None
    try:
        arguments = value["arguments"]
        first = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
        prompt = first["arg_0"] if isinstance(first, dict) else first[0]
        reply = value["resps"][0][0]
        messages = json_text.parse(prompt)
    except (LookupError, TypeError, StopIteration):
        raise ValueError("a sample of lm-eval's without a prompt and a reply") from None
    except ValueError:
        messages = None
    if not isinstance(messages, list) or not any(map(is_message, messages)):
        raise ValueError("a sample of lm-eval's whose prompt is no list of messages; run it on a chat endpoint")
    return [RawConversation([*messages, {"role": "assistant", "content": reply}])]


def plain_text(value: Any) -> Sequence[RawConversation] | None:
    """Lines that begin with `User:`, `Assistant:` and the like; a turn goes on until the next."""
    marks = list(_SPEAKER.finditer(value)) if isinstance(value, str) else []
    if not marks:
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(value)]
    return [
        RawConversation(
            [
                {"role": mark[1], "content": value[mark.end() : end].strip()}
                for mark, end in zip(marks, ends, strict=True)
            ]
        )
    ]


def _listed(value: Any, *keys: str) -> Sequence[RawConversation] | None:
    """The conversation whose messages lie in a list under one of the keys, with the system prompt that stands beside it."""
    for key in keys if isinstance(value, dict) else ():
        messages = value.get(key)
        if not isinstance(messages, list) or not any(map(is_message, messages)):
            continue
        for system in (value.get("system_prompt"), value.get("system")):
            # Where a model takes none, the study writes it at the head of the user's first message, too.
            first = messages[0] if isinstance(messages[0], dict) else {}
            inside = first.get("role", first.get("from")) in ("system", "developer") or (
                isinstance(system, str) and str(first.get("content", first.get("value"))).startswith(system)
            )
            if isinstance(system, str) and system and not inside:
                messages = [{"role": "system", "content": system}, *messages]
        return [RawConversation(messages)]
    return None


def _branch(parents: dict[str, Any], leaf: Any) -> list[str]:
    """The names from a tree's root to a leaf; to the last that has no child where that one is not in the tree. Raises
    `ValueError` for one that goes in a circle."""
    if not isinstance(leaf, str) or leaf not in parents:
        with_children = {parent for parent in parents.values() if isinstance(parent, str)}
        leaf = next((name for name in reversed(parents) if name not in with_children), None)
        if leaf is None and parents:
            raise ValueError("its tree of messages goes in a circle")
    path: dict[str, None] = {}
    while isinstance(leaf, str) and leaf in parents:
        if leaf in path:
            raise ValueError("its tree of messages goes in a circle")
        path[leaf] = None
        leaf = parents[leaf]
    return list(reversed(path))
