"""Which judges there are, by name. A new one is a file with a function that makes it, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from personaspace.errors import UsageError

if TYPE_CHECKING:
    from personaspace.judges.score import Judge, Rubric


@dataclass(frozen=True)
class JudgeEntry:
    """place: `module:function` that makes the judge, imported when it is asked for; it takes `make_judge`'s keywords that it
    needs. summary: of help texts. by_model: whether a loaded model does the judging."""

    place: str
    summary: str
    by_model: bool = False


NOBODY = "none"
DEFAULT_JUDGE = "rules"
JUDGES = {
    "rules": JudgeEntry("personaspace.judges.rules:rules_judge", "by words alone"),
    "local": JudgeEntry("personaspace.judges.local:local_judge", "a model here reads each reply", by_model=True),
    "openai": JudgeEntry("personaspace.judges.openai_judge:openai_judge", "a model behind an endpoint"),
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
