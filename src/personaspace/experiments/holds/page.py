"""How it is told and drawn what ways of holding do; it knows nothing of how that was counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from personaspace.experiments.holds.findings import DEFAULT_TALK, NEVER, ROLE_TALK, HoldOutcome
from personaspace.experiments.kit import tasks as solving
from personaspace.experiments.kit.beside import beside_in_words, tell_beside
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.tasks import Outcomes
from personaspace.report.charts import COLOURS, axis, chart, line
from personaspace.report.page import Page
from personaspace.space import PersonaSpace

LEAD = (
    "{model} talks for {turns} turns under {n} roles' instructions, asked the catalogue's questions, and {n} times as itself "
    "about ordinary things: never held, and held in each way. What was said is read by the plain model throughout."
)
EFFECTS = (
    "Drift in the default's standard deviations, up is away from the Assistant; taken back: against never held, in the same "
    "conversations; its share of the drift. Touched: of the default's own tokens. Perplexity: the plain model's, of what was "
    "said against what it says itself. Distinct: the share of a conversation's pairs of words that are different ones, and its "
    "change. Intervals over conversations (95%); solved: of small tasks, Wilson's, and McNemar's p."
)
TAKEN_BACK = "taken back over the first turns"
BESIDE = "What is taken back over the first {turns} turns of the roles' conversations."
EFFECTS_IN_WORDS = {1: "Taken back", 0: "Nothing taken back that can be told from none", -1: "Led further away"}
"""How it is said which way an interval leaves none out, up being back to the default."""

HEAD = (
    "held",
    "drift in role",
    "taken back",
    "of the drift",
    "default's touched",
    "perplexity, default",
    "perplexity, role",
    "distinct",
    "change",
    "solved",
    "p",
)


def page(
    space: PersonaSpace,
    turns: int,
    outcomes: Mapping[str, HoldOutcome],
    rows: Sequence[Mapping[str, Any]],
    solved: Outcomes,
) -> Result:
    """The result: a table of effect and costs, drift turn by turn, random directions, tasks."""
    unheld, holds = outcomes[NEVER], [name for name in outcomes if name != NEVER]
    model = space.meta["model"]["id"]
    n = unheld.taken_back.n
    result_page = Page("Which way of holding?", LEAD.format(model=model, turns=turns, n=n))
    result_page.figure("drift in role, never held", unheld.drift, f"standard deviations; {n} conversations")
    for name in holds:
        outcome = outcomes[name]
        if outcome.changed_nothing:
            result_page.figure(f"taken back, {name}", "held no reply", f"in these conversations {_uncalled(name)}")
            continue
        costs = f"× {outcome.perplexity[DEFAULT_TALK]:.3f} perplexity of the default's replies"
        result_page.figure(f"taken back, {name}", outcome.taken_back, costs)
    table = [_row(name, outcome) for name, outcome in outcomes.items()]
    result_page.section("Effect and cost", EFFECTS, head=HEAD, rows=table)
    data = [
        trace
        for (name, outcome), colour in zip(outcomes.items(), COLOURS * 2, strict=False)
        for trace in line(
            "never" if name == NEVER else name,
            range(1, turns + 1),
            outcome.by_turn,
            colour,
            dash="dot" if name == NEVER else "solid",
        )
    ]
    drawing = chart(data, axis("turn", dtick=1), "drift in role (up is away)", 420)
    result_page.section("Turn by turn", "Means over the roles' conversations, with 95% intervals over them.", drawing)
    if compared := {name: o.beside for name, o in outcomes.items() if o.beside}:
        control_turns = max(r["turn"] for r in rows if r["control"] is not None)
        tell_beside(result_page, compared, TAKEN_BACK, BESIDE.format(turns=control_turns))
    solving.tell(result_page, "Tasks solved", "Greedy replies to single questions, checked by program.", solved)
    return Result(result_page, headline(outcomes), {"holds": outcomes}, rows)


def _uncalled(name: str) -> str:
    """Why a way of holding has changed nothing."""
    return "no alert came" if "+alert" in name else "nothing called for it"


def headline(outcomes: Mapping[str, HoldOutcome]) -> str:
    """Which ways take back what can be told, which don't, and what may be said of it; costs stand in the table."""
    unheld, holds = outcomes[NEVER], {name: outcome for name, outcome in outcomes.items() if name != NEVER}
    sentences = [f"Never held, roles' replies lie {unheld.drift} of the default's standard deviations away."]
    tried = {name: outcome for name, outcome in holds.items() if not outcome.changed_nothing}
    for direction, effect in EFFECTS_IN_WORDS.items():
        if names := [name for name, outcome in tried.items() if outcome.taken_back.direction() == direction]:
            each = "; ".join(f"“{name}” {tried[name].taken_back}" for name in names)
            sentences.append(f"{effect}: {each}.")
    for name, outcome in holds.items():
        if outcome.changed_nothing:
            sentences.append(f"“{name}” held no reply: in these conversations {_uncalled(name)}.")
        elif (verdict := outcome.tasks.verdict()) in ("a loss", "a gain"):
            sentences.append(f"At small tasks “{name}” shows {verdict}.")
    sentences.append("What each costs stands in the table.")
    beside = {name: outcome.beside for name, outcome in outcomes.items() if outcome.beside}
    return " ".join([*sentences, beside_in_words(beside, TAKEN_BACK, list(holds))])


def _row(name: str, outcome: HoldOutcome) -> list[str]:
    if name == NEVER:
        return ["never", f"{outcome.drift:.2f}", *[""] * 5, f"{outcome.distinct:.2f}", "", outcome.tasks.told(), ""]
    return [
        name,
        f"{outcome.drift:.2f}",
        f"{outcome.taken_back:+.2f}",
        f"{outcome.share:.0%}",
        f"{outcome.touched:.0%}",
        f"× {outcome.perplexity[DEFAULT_TALK]:.3f}",
        f"× {outcome.perplexity[ROLE_TALK]:.3f}",
        f"{outcome.distinct:.2f}",
        f"{outcome.more_distinct:+.3f}",
        outcome.tasks.told(),
        f"{outcome.tasks.p:.2f}",
    ]
