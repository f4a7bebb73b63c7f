"""Which judges there are, by name. A new one is a file with a function that makes it, and a line here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from personaspace.errors import UsageError

if TYPE_CHECKING:
    from personaspace.judges.score import Judge, Rubric


@dataclass(frozen=True)
class JudgeEntry:
    """place: `module:function` that makes the judge, imported when it is asked for; it takes `make_judge`'s keywords that it
    needs. summary: of help texts. by_model: whether a model that is loaded here judges; by_endpoint: whether one elsewhere."""

    place: str
    summary: str
    by_model: bool = False
    by_endpoint: bool = False


NOBODY = "none"
DEFAULT_JUDGE = "rules"
JUDGES = {
    "rules": JudgeEntry("personaspace.judges.rules:rules_judge", "by words alone"),
    "local": JudgeEntry("personaspace.judges.local:local_judge", "a model here reads each reply", by_model=True),
    "openai": JudgeEntry(
        "personaspace.judges.openai_judge:openai_judge", "a model behind an endpoint", by_endpoint=True
    ),
}
JUDGE_NAMES = (*JUDGES, NOBODY)
JUDGES_HELP = "; ".join(f"{name}: {entry.summary}" for name, entry in JUDGES.items()) + "; or none."
"""Every judge in a help text's words."""


def check_judge(name: str) -> None:
    """Raises `UsageError` for a name that is no judge's."""
    if name not in JUDGE_NAMES:
        raise UsageError(f"--judge {name}: expected one of {', '.join(JUDGE_NAMES)}")


def make_judge(
    name: str,
    *,
    engine: Any = None,
    model: str | None = None,
    url: str | None = None,
    rubric: Rubric | None = None,
    rules: Judge | None = None,
    options: Mapping[str, Any] | None = None,
    key_env: str | None = None,
) -> Judge | None:
    """The judge of that name; None for `none`. engine: who judges where a model here does; model, url, options (fields of
    each request), key_env (the variable with its key): the endpoint's; rubric: role adherence unless given; rules: who goes by
    words alone, where it is not adherence that is judged.

    Raises `UsageError`, or `JudgeError` where it cannot work.

    >>> judge = make_judge("rules")
    """
    check_judge(name)
    if name == NOBODY:
        return None
    from personaspace.judges.rules import ADHERENCE

    module, _, function = JUDGES[name].place.partition(":")
    judge: Judge = getattr(import_module(module), function)(
        engine=engine,
        model=model,
        url=url,
        rubric=rubric or ADHERENCE,
        rules=rules,
        options=options,
        key_env=key_env,
    )
    return judge


OURS = ("model", "messages", "stream", "n")


def read_options(texts: Iterable[str]) -> dict[str, Any]:
    """Fields of a request from `name=value`, the value JSON or else a text. Raises `UsageError` that names the wrong one.

    >>> read_options(["temperature=1", "reasoning_effort=low", "max_tokens=null"])
    {'temperature': 1, 'reasoning_effort': 'low', 'max_tokens': None}
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UsageError(f"--judge-option {text}: expected NAME=VALUE, as in temperature=1 or reasoning_effort=low")
        if name in OURS:
            hint = "give --judge-model" if name == "model" else "the judge needs it as it is"
            raise UsageError(f"--judge-option {text}: {name} is no option; {hint}")
        try:
            options[name] = json.loads(value, parse_constant=_no_number)
        except (ValueError, RecursionError):
            options[name] = value
    return options


def _no_number(text: str) -> float:
    raise ValueError(text)
