"""Small tasks that a program checks, and how a model does at them under conditions; it knows nothing of any one experiment."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from personaspace.engines.prompts import Sampling
from personaspace.experiments import data
from personaspace.experiments.kit.checks import Check, passes
from personaspace.experiments.kit.trials import PLAIN, Ask, Condition, Given, Trials
from personaspace.report.charts import beside
from personaspace.report.page import Page
from personaspace.stats.intervals import Estimate, change, mean, paired, share

CATEGORIES = ("instruction", "fact", "arithmetic")
ALL = "all"
PROMPT_TOKENS = 40
COLUMNS = ("part", "condition", "category", "item", "prompt", "text", "value", "tokens", "projection")
"""Of a row of the results: value is 1 or 0 of a task, a score, or a mean log-probability."""
LONGEST = 200
"""Characters of a reply that stands beside another."""

_SUMS: tuple[tuple[str, Callable[[int, int], int], int], ...] = (
    ("What is {a} + {b}?", operator.add, 50),
    ("What is {a} - {b}?", operator.sub, 50),
    ("What is {a} times {b}?", operator.mul, 13),
    ("Tom has {a} apples. Ann gives him {b} more. How many apples does Tom have now?", operator.add, 50),
    ("There are {a} birds on a roof. {b} of them fly away. How many birds are left?", operator.sub, 50),
    ("A box holds {b} eggs. How many eggs are there in {a} boxes?", operator.mul, 13),
)
"""How a sum is put, what it comes to, and under what its numbers stay; the larger one is a."""


@dataclass(frozen=True)
class Task:
    """A task: its category and name, what is asked, and what a right reply passes."""

    category: str
    name: str
    prompt: str
    check: Check


@dataclass(frozen=True)
class Outcome:
    """How a condition does on items. value: the share solved, or the mean score where `scored`; change: against plain, on the
    same items (plain itself has none); p: of a paired test that there is none (McNemar's exact one for shares, Wilcoxon's for
    scores); gained, lost: items at which the condition does better, or worse."""

    value: Estimate
    change: Estimate | None = None
    p: float = 1.0
    gained: int = 0
    lost: int = 0
    scored: bool = False

    def told(self) -> str:
        """The share or score, with its interval."""
        return str(self.value) if self.scored else f"{self.value:.0%}"

    def moved(self) -> str:
        """The change with its interval, of a share in percentage points."""
        if (e := self.change) is None:
            return ""
        if self.scored:
            return f"{e:+.2f}".replace("-", "−")
        return f"{e.points()} points"

    def verdict(self) -> str:
        """What may be said of the change."""
        e = self.change
        if e is not None and self.p < 0.05:
            return "a loss" if e.value < 0 else "a gain"
        still = f", though a loss of {-100 * e.low:.0f} points is not ruled out" if e and not self.scored else ""
        return f"no change that can be told from none{still}"


Outcomes = Mapping[str, Mapping[str, Outcome]]
"""Condition → category → how it does."""


def tasks(each: int, seed: int) -> list[Task]:
    """As many of each category, evenly from the file's list as far as it goes; sums are made by the seed."""
    rows = data.lines("tasks.jsonl")
    selected = []
    for category in CATEGORIES[:2]:
        of_category = [r for r in rows if r["category"] == category]
        n = min(each, len(of_category))
        chosen = [of_category[k * len(of_category) // n] for k in range(n)]
        selected += [Task(category, r["name"], r["prompt"], r["check"]) for r in chosen]
    return selected + sums(each, seed)


def sums(n: int, seed: int) -> list[Task]:
    """Small sums, bare and in words, no two alike; there are 66 of each of six kinds at least."""
    rng = np.random.default_rng(seed)
    by_prompt: dict[str, Task] = {}
    while len(by_prompt) < n:
        text, result, under = _SUMS[len(by_prompt) % len(_SUMS)]
        b, a = sorted(int(x) for x in rng.integers(2, under, size=2))
        prompt = f"{text.format(a=a, b=b)} Answer with the number in digits."
        check = {"kind": "number", "equals": result(a, b)}
        by_prompt.setdefault(prompt, Task("arithmetic", f"sum-{len(by_prompt)}", prompt, check))
    return list(by_prompt.values())


def solve(trials: Trials[Any], conditions: Sequence[Condition], each: int) -> tuple[Outcomes, list[dict[str, Any]]]:
    """Puts so many tasks of each category under every condition, greedily: how each does, and a row a reply."""
    task_list = tasks(each, trials.options.seed)
    asks = [Ask(c, t.name, ({"role": "user", "content": t.prompt},)) for c in conditions for t in task_list]
    sampling = Sampling(temperature=0, max_new_tokens=trials.options.max_new_tokens)
    solved, rows = marked(task_list, trials.ask(asks, sampling, part="tasks"))
    scores = {condition: [float(right) for right in of_condition] for condition, of_condition in solved.items()}
    return outcomes(scores, [t.category for t in task_list]), rows


def marked(task_list: Sequence[Task], replies: Sequence[Given]) -> tuple[dict[str, list[bool]], list[dict[str, Any]]]:
    """Whether each task is solved, by condition in the tasks' order, and a row a reply. It asks nothing."""
    by_name = {t.name: t for t in task_list}
    solved: dict[str, list[bool]] = {}
    rows = []
    for g in replies:
        task = by_name[g.item]
        right = bool(g.text.strip()) and passes(task.check, g.text)
        solved.setdefault(g.condition, []).append(right)
        cells = (task.category, g.item, task.prompt, g.text, float(right), g.tokens, g.projection)
        rows.append(dict(zip(COLUMNS, ("tasks", g.condition, *cells), strict=True)))
    return solved, rows


def side_by_side(rows: Sequence[Mapping[str, Any]], shown: str, most: int = 8) -> list[list[str]]:
    """Tasks that only one of plain and another condition solves, with both replies."""
    by_item: dict[str, dict[str, Mapping[str, Any]]] = {}
    for r in rows:
        by_item.setdefault(r["item"], {})[r["condition"]] = r
    apart = [by for by in by_item.values() if by[PLAIN.name]["value"] != by[shown]["value"]]
    apart = [apart[k * len(apart) // most] for k in range(most)] if len(apart) > most else apart

    def reply(r: Mapping[str, Any]) -> str:
        text = r["text"].strip()
        short = text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " …"
        return f"{'✓' if r['value'] else '✗'} {short}"

    return [[by[shown]["prompt"], reply(by[PLAIN.name]), reply(by[shown])] for by in apart]


def outcomes(values: Mapping[str, Sequence[float]], groups: Sequence[str] = ()) -> dict[str, dict[str, Outcome]]:
    """Condition → category → how it does there, `all` first. values: by condition, the score of each item (1 and 0 where it is
    solved or not), in the same order under each; groups: each item's category."""
    plain = values[PLAIN.name]
    places = {ALL: list(range(len(plain)))}
    for k, group in enumerate(groups):
        places.setdefault(group, []).append(k)
    return {
        name: {
            group: _outcome([plain[k] for k in indices], None if name == PLAIN.name else [scores[k] for k in indices])
            for group, indices in places.items()
        }
        for name, scores in values.items()
    }


def _outcome(plain: Sequence[float], conditioned: Sequence[float] | None) -> Outcome:
    shown = plain if conditioned is None else conditioned
    if {*plain, *shown} <= {0, 1}:
        first, second = [bool(x) for x in plain], [bool(x) for x in shown]
        if conditioned is None:
            return Outcome(share(second))
        test = paired(second, first)
        return Outcome(share(second), change(first, second), test.p, test.only_first, test.only_second)
    value = mean(shown)
    if conditioned is None:
        return Outcome(value, scored=True)
    apart = np.array(conditioned) - np.array(plain)
    gained, lost = int((apart > 0).sum()), int((apart < 0).sum())
    from scipy.stats import wilcoxon

    p = float(wilcoxon(apart).pvalue) if apart.any() else 1.0
    return Outcome(value, mean(apart.tolist()), p, gained, lost, scored=True)


HEAD = ("condition", "tasks", "items", "solved", "against plain", "gained", "lost", "p")


def tell(page: Page, title: str, text: str, by_condition: Outcomes) -> None:
    """Adds a section of how each condition does: shares by category, and a table."""
    groups = list(next(iter(by_condition.values())))
    series = {name: [by[g].value for g in groups] for name, by in by_condition.items()}
    height = 110 + 24 * len(groups) * len(series)
    chart = beside(groups, series, "share solved", percent=True, sideways=True, height=height, scattergap=0.5)
    page.section(title, text, chart, HEAD, table(by_condition))


def table(by_condition: Outcomes) -> list[list[str]]:
    """A row a condition and category, under `HEAD`."""
    return [
        [
            name,
            group,
            str(o.value.n),
            o.told(),
            *([o.moved(), str(o.gained), str(o.lost), f"{o.p:.2f}"] if o.change else [""] * 4),
        ]
        for name, by in by_condition.items()
        for group, o in by.items()
    ]
