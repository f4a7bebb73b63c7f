"""Publishes a space on the Hugging Face Hub, with a card drawn from its figures; uses the network.

`PersonaSpace.load("hf://owner/name")` is the way back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from personaspace.errors import SpaceError, UsageError
from personaspace.report import words
from personaspace.space import PersonaSpace

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MARKDOWN = re.compile(r"([\\`*\[\]<>|#!~&])")


def push(
    space: PersonaSpace,
    target: str,
    *,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Uploads space.safetensors and README.md to `owner/name` (or `hf://owner/name`) as one commit, making the repository
    where there is none; returns its address.

    token, endpoint: None takes what the Hub's own tools are set to. Raises `UsageError` for another target, `SpaceError`
    where the Hub cannot be reached or refuses, and where it is to be private and the repository is public already.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HTTPError

    repo = target.removeprefix("hf://")
    if not _NAME.fullmatch(repo):
        raise UsageError(f"{target}: expected owner/name or hf://owner/name")
    api = HfApi(endpoint=endpoint, token=token)
    with TemporaryDirectory() as folder:
        file = Path(folder, "space.safetensors")
        space.save(file)
        try:
            url = str(api.create_repo(repo, private=private, exist_ok=True))
            if private and not api.model_info(repo).private:
                raise SpaceError(f"{target}: is there already, and public; nothing was uploaded, make it private first")
            card = CommitOperationAdd("README.md", model_card(space, repo).encode())
            api.create_commit(
                repo, [CommitOperationAdd(file.name, file), card], commit_message="Upload a persona space"
            )
        except (HTTPError, OSError, ValueError, RuntimeError) as e:
            raise SpaceError(f"{target}: cannot be uploaded: {_why(e)}") from None
    return url


def model_card(space: PersonaSpace, repo: str) -> str:
    """The README.md of a space on the Hub: what it is, its figures, and how to load it."""
    s = space.summary()
    # What stands in a card is read as Markdown, and a name is none.
    s = {**s, "roles": [{**role, "name": as_markdown(role["name"])} for role in s["roles"]]}
    names, on_hub = [role["name"] for role in s["roles"]], _NAME.fullmatch(s["model"])
    # A folder of the user's is not told to the world.
    model = s["model"] if on_hub else re.sub(r"[`\s]+", " ", Path(s["model"]).name)
    base = f"base_model: {model}\n" if on_hub else ""
    n = min(10, len(names) // 2)
    ends = (
        words.order(s)
        if s["order_known"] is False
        else f"""Most Assistant-like: {", ".join(names[:n]) or "too few roles"}.

Least Assistant-like: {", ".join(names[::-1][:n]) or "too few roles"}.

{words.order(s)}"""
    )
    return f"""---
library_name: personaspace
{base}tags:
- personaspace
- interpretability
- assistant-axis
- activation-steering
---

# The persona space of {as_markdown(model)}

Role vectors, the Assistant Axis and their principal components, read from the residual stream of `{model}`.

## How sure it is

{words.INTRODUCTION} {words.SOURCE}

| read from | figure | value | in words |
| --- | --- | --- | --- |
{_reliabilities(s)}
{words.agreement(s)}

## Figures

Read from {words.read_from(s["reading"])}.

| figure | value |
| --- | --- |
| layer | {s["layer"]} of {s["layers"]}, counted from 0 |
| roles | {s["n_roles"]} |
| responses | {_said(s["n_responses"])} |
| cosine of axis and PC1 | {_said(s["axis_pc1_cosine"])} |
| reliability of the axis | {_said(s["axis_reliability"])} |
| components for 70% of the roles' variance | {_said(s["components_for_70pct"])} |

As measured, these figures have noise in them; what is known of it, and the study's own, which are no marks to pass:

| figure | as measured | noise taken out | roles shuffled | the study |
| --- | --- | --- | --- | --- |
{_beside(s)}

{ends}

```python
from personaspace import PersonaSpace

space = PersonaSpace.load("hf://{repo}")
```
"""


def as_markdown(text: str) -> str:
    """A text on one line as Markdown shows it unchanged.

    >>> print(as_markdown("a <b>ghost</b>"))
    a \\<b\\>ghost\\</b\\>
    """
    return _MARKDOWN.sub(r"\\\1", " ".join("".join(c if c.isprintable() else " " for c in text).split()))


def _reliabilities(s: Mapping[str, Any]) -> str:
    rows = []
    for reading, worth in s["readings"].items():
        for r in words.reliabilities(worth):
            by_text = "" if r.by_text is None else f" With other instructions as well: {words.number(r.by_text)}."
            in_words = " ".join(text for text in (r.meaning + by_text, r.takes) if text)
            rows.append(f"| {reading} | {r.name} | {r.shown} | {in_words} |")
    return "\n".join(rows)


def _beside(s: Mapping[str, Any]) -> str:
    rows = []
    for row in words.beside(s):
        measured, corrected = (
            f"{x} ({interval})" if interval else x or "not known"
            for x, interval in ((row.measured, row.interval), (row.corrected, row.corrected_interval))
        )
        rows.append(f"| {row.name} | {measured} | {corrected} | {row.shuffled or 'not known'} | {row.study} |")
    return "\n".join(rows)


def _said(value: float | None) -> str:
    if value is None:
        return "not known"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _why(error: Any) -> str:
    """One line on what went wrong, and what to do about it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the Hub knows no valid token; run `hf auth login` or set HF_TOKEN"
    if status == 403:
        return "the token may not write there; expected one with write access to the owner"
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if status else f"{line}; is the network there?"
