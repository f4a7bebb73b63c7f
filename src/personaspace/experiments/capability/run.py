"""What steering and capping cost: perplexity, small tasks, and lm-eval's tasks through a server."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from personaspace.catalog import DEFAULT, Catalog
from personaspace.engines.prompts import Sampling, assign
from personaspace.experiments.capability import lm_eval as harness
from personaspace.experiments.kit import tasks as solving
from personaspace.experiments.kit.beside import beside_in_words, tell_beside
from personaspace.experiments.kit.conditions import compared
from personaspace.experiments.kit.experiment import Experiment
from personaspace.experiments.kit.options import Cost, Names, Numbers, Options, option
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.tasks import ALL, COLUMNS, HEAD, Outcomes
from personaspace.experiments.kit.trials import (
    PLAIN,
    Ask,
    Condition,
    Reading,
    Trials,
    beside_axis,
    beside_plain,
)
from personaspace.mapping.options import named
from personaspace.report.charts import across, beside
from personaspace.report.page import Chart, Page
from personaspace.stats.intervals import Estimate, bootstrap

Row = Mapping[str, Any]
LEAD = (
    "{model}, plain, steered and capped: how many tasks it solves, the same ones each time, and how probable it finds the "
    "default's own replies."
)
STUDY = "The study: capping loses nothing on IFEval, MMLU-Pro, GSM8k and EQ-Bench."
NOT_ASKED = " Those are not asked here: --tasks puts them, or any of lm-eval's, to a server."
SOLVED = (
    "Greedy replies, checked by program. Shares with 95% intervals (Wilson); changes with Newcombe's, and McNemar's p."
)
READ_AGAIN = (
    "Replies that the plain model gave as the default, read again under each condition; a bootstrap over replies."
)
DEARER = "the factor on the perplexity of the default's replies, less 1"
BESIDE = "What the default's replies cost. Tasks are not put along other directions."
PUBLISHED_TASKS = ("ifeval", "mmlu_pro", "gsm8k", "eq_bench")


class CapabilityOptions(Options):
    """See the fields."""

    caps: Names = option(("capped",), "Caps of the space, or ways of holding by one: capped+mirror, …")
    alphas: Numbers = option((0.1,), "Steering strengths, in units of the residual norm.")
    replies: int = option(64, "Replies of the default whose probability is compared.", ge=2)
    items: int = option(40, "Tasks a kind: instructions (48 at most), facts (40), sums.", ge=1, le=200)
    controls: int = option(
        20,
        "Random directions beside each condition, along which the replies are read displaced as far; 0: none.",
        ge=0,
        later=True,
    )
    max_new_tokens: int = option(48, "At most that many tokens a reply.", ge=1)
    tasks: Names = option((), "Tasks of lm-eval, asked through a server as well.")
    url: str = option(
        "",
        "The server that --tasks are put to: http://127.0.0.1:8000/v1 of a running `personaspace serve`.",
        later=True,
    )
    include_path: str = option("", "A folder with lm-eval tasks of your own.")
    limit: int = option(0, "At most that many items of each of --tasks; all unless given.", ge=0)


PUBLISHED = CapabilityOptions(replies=1200, items=48, max_new_tokens=512, tasks=PUBLISHED_TASKS)


def cost(options: CapabilityOptions, catalog: Catalog) -> Cost:
    """What that asks of the engine; what is put to a server counts where its size is known, as if it were asked here."""
    n = len(beside_plain(options.alphas, options.caps))
    n_tasks = len(solving.tasks(options.items, options.seed)) * n
    each = options.max_new_tokens + solving.PROMPT_TOKENS
    pushed = beside_axis(beside_plain(options.alphas, options.caps)[1:], options.controls)
    read = options.replies * (n + len(pushed)) * each
    served = sum(min(harness.ITEMS.get(t, 0), options.limit or 10**6) for t in options.tasks) * (1 + len(options.caps))
    answers = options.replies + n_tasks + served
    return Cost(options.replies + n_tasks, answers * each + read, answers * options.max_new_tokens)


def run(trials: Trials[CapabilityOptions]) -> Result:
    """Asks the default, reads its replies under every condition, puts the tasks. Raises `PersonaSpaceError`."""
    options, model = trials.options, trials.engine.info.id
    conditions = beside_plain(options.alphas, options.caps)
    names = [c.name for c in conditions]
    served: list[dict[str, Any]] = []
    if options.tasks:
        lm_eval = harness.ready(options.tasks, options.url, options.include_path, conditions, model)
        served = lm_eval.measure(trials, options.limit or None)
    pushed = beside_axis(conditions[1:], options.controls)
    texts, read = _default_replies(trials, [*conditions, *pushed])
    own_tasks, rows = solving.solve(trials, conditions, options.items)
    perplexity = {n: surprise(read[PLAIN.name], read[n]) for n in names}
    dearer = {c.name: _factor(read[PLAIN.name], read[c.name]) - 1 for c in pushed}
    beside_random = {n: compared(n, perplexity[n][1].value - 1, dearer) for n in names[1:]} if pushed else {}
    by_server_task = through_server(served)
    shown = next((c.name for c in conditions if c.cap), names[-1])

    page = Page("What does holding it cost?", LEAD.format(model=trials.space.meta["model"]["id"]))
    _figures(page, shown, perplexity[shown][1], own_tasks, by_server_task)
    solving.tell(page, "Tasks solved", SOLVED, own_tasks)
    if by_server_task:
        tables = {task: solving.table({c: {ALL: o} for c, o in by.items()}) for task, by in by_server_task.items()}
        cells = [[task, name, *figures] for task, lines in tables.items() for name, _, *figures in lines]
        head = ["task of lm-eval", *HEAD[:1], *HEAD[2:]]
        page.section("Through the server", "lm-eval's tasks, each item plain and capped.", head=head, rows=cells)
    reply_rows = [[n, f"{v:.1f}", f"{f:.3f}" if n != PLAIN.name else ""] for n, (v, f) in perplexity.items()]
    head = ["condition", "perplexity", "factor on plain's"]
    page.section("The default's own replies", READ_AGAIN, _factors(perplexity), head, reply_rows)
    tell_beside(page, beside_random, DEARER, BESIDE, "+.3f")
    if shown != PLAIN.name and (pairs := solving.side_by_side(rows, shown)):
        text = "Some of the tasks that only one of the two solves."
        page.section(f"Where plain and “{shown}” differ", text, head=["task", "plain", shown], rows=pairs)

    lines: list[tuple[Any, ...]] = [
        ("default", name, DEFAULT, r.conversation, "", texts[r.conversation], r.logprob, r.tokens, r.projection)
        for name, readings in read.items()
        for r in readings
    ]
    lines += [
        (s["part"], s["condition"], s["measure"], s["item"], "", s["text"], s["value"], None, None) for s in served
    ]
    rows += [dict(zip(COLUMNS, cells, strict=True)) for cells in lines]
    figures = {
        "shown": shown,
        "perplexity": {n: {"value": v, "factor": f} for n, (v, f) in perplexity.items()},
        "beside": beside_random,
        "tasks": own_tasks,
        "lm_eval": by_server_task,
    }
    beside_sentences = beside_in_words(beside_random, DEARER, names[1:], "+.3f")
    headline = _headline(shown, perplexity[shown][1], own_tasks, by_server_task, beside_sentences)
    return Result(page, headline, figures, rows)


def _default_replies(
    trials: Trials[CapabilityOptions], conditions: Sequence[Condition]
) -> tuple[dict[str, str], dict[str, list[Reading]]]:
    """Replies of the default, plain, by item, and how each condition reads them, in the same order."""
    catalog, options = named(trials.catalog, trials.engine.info.id), trials.options
    (prompts,) = assign(catalog, [{DEFAULT: options.replies}], options.seed)
    asks = [Ask(PLAIN, f"default {k}", p.messages) for k, p in enumerate(prompts)]
    replies = trials.ask(asks, Sampling(max_new_tokens=options.max_new_tokens), part="default")
    conversations = {
        a.item: [*a.messages, {"role": "assistant", "content": g.text}]
        for a, g in zip(asks, replies, strict=True)
        if g.text.strip()
    }
    readings = {
        c.name: trials.read(conversations, part=f"read-{c.name}", condition=c, logprobs=True) for c in conditions
    }
    in_order = {name: [r for turns in by_item.values() for r in turns] for name, by_item in readings.items()}
    return {g.item: g.text for g in replies}, in_order


def surprise(plain: Sequence[Reading], conditioned: Sequence[Reading]) -> tuple[Estimate, Estimate]:
    """Perplexity of the replies as the other condition reads them, and its factor on plain's; both with a bootstrap over
    replies."""
    n = np.array([r.tokens for r in conditioned], dtype=float)
    before, after = (np.array([r.logprob for r in readings]) for readings in (plain, conditioned))
    names = [r.conversation for r in conditioned]
    value = bootstrap(names, lambda draw: math.exp(-float(n[draw] @ after[draw] / n[draw].sum())))
    factor = bootstrap(names, lambda draw: math.exp(float(n[draw] @ (before[draw] - after[draw]) / n[draw].sum())))
    return value, factor


def _factor(plain: Sequence[Reading], conditioned: Sequence[Reading]) -> float:
    """`surprise`'s factor without its interval, of which a control has no need: a bootstrap of each would take seconds."""
    n = np.array([r.tokens for r in conditioned], dtype=float)
    apart = np.array([a.logprob - b.logprob for a, b in zip(plain, conditioned, strict=True)])
    return math.exp(float(n @ apart / n.sum()))


def through_server(rows: Sequence[Row]) -> Outcomes:
    """Task and measure → condition → how it does, over the items that were measured under every condition."""
    by_measure: dict[str, dict[str, solving.Outcome]] = {}
    if not rows:
        return {}
    for (part, measure), measured in pd.DataFrame(list(rows)).groupby(["part", "measure"], sort=False):
        values = measured.pivot_table(index="item", columns="condition", values="value", sort=False).dropna()
        compared = solving.outcomes({condition: values[condition].tolist() for condition in values})
        by_measure[f"{part} ({measure})"] = {condition: by[ALL] for condition, by in compared.items()}
    return by_measure


def _headline(
    shown: str,
    factor: Estimate,
    own_tasks: Outcomes,
    by_server_task: Outcomes,
    beside_sentences: str,
) -> str:
    plain, conditioned = own_tasks[PLAIN.name][ALL], own_tasks[shown][ALL]
    sentence = f"Of {plain.value.n} small tasks the plain model solves {plain.told()}. "
    if conditioned.change:
        sentence += (
            f"Under “{shown}” it solves {conditioned.told()}, {conditioned.moved()}, p = {conditioned.p:.2f}: "
            f"{conditioned.verdict()}. The perplexity of the default's own replies is × {factor:.3f}. "
        )
    for name, by in _first_measures(by_server_task).items():
        if (o := by.get(shown)) and o.change:
            plainly = by[PLAIN.name].told()
            sentence += f"{name}: {plainly} plain, {o.told()} under “{shown}”, p = {o.p:.2f}: {o.verdict()}. "
    sentence += f"{beside_sentences} " if beside_sentences else ""
    return f"{sentence}{STUDY}{'' if by_server_task else NOT_ASKED}"


def _first_measures(by_task: Outcomes) -> Outcomes:
    """Of each task the measure that lm-eval names first."""
    first = {name.split(" (")[0]: name for name in reversed(list(by_task))}
    return {name: by for name, by in by_task.items() if name in first.values()}


def _figures(page: Page, shown: str, factor: Estimate, own_tasks: Outcomes, by_task: Outcomes) -> None:
    plain, conditioned = own_tasks[PLAIN.name][ALL], own_tasks[shown][ALL]
    page.figure("tasks solved, plain", plain.value, f"of {plain.value.n}", ".0%")
    if conditioned.change:
        page.figure(f"change under “{shown}”, points", conditioned.change.in_points(), spec="+.0f", study="no loss")
        page.figure(f"perplexity under “{shown}”, × plain's", factor, "of the default's own replies", ".3f")
    for name, by in list(_first_measures(by_task).items())[:1]:
        outcome = by.get(shown, by[PLAIN.name])
        page.figure(name, outcome.value, f"plain {by[PLAIN.name].told()}", ".2f" if outcome.scored else ".0%")


def _factors(perplexity: Mapping[str, tuple[Estimate, Estimate]]) -> Chart | None:
    """The factors on plain's perplexity; none where there is only plain."""
    factors = {name: f for name, (_, f) in perplexity.items() if name != PLAIN.name}
    if not factors:
        return None
    height, equal = 90 + 36 * len(factors), [across(x=1, dash="solid", width=2)]
    series = {"× plain's": list(factors.values())}
    return beside(list(factors), series, "factor on plain's perplexity", sideways=True, height=height, shapes=equal)


EXPERIMENT = Experiment("capability", PUBLISHED, cost, run)
