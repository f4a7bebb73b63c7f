"""Who the model says it is while it is steered along the axis or capped (the paper's section on steering)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from personaspace.catalog import Catalog, Role
from personaspace.errors import UsageError
from personaspace.experiments import data
from personaspace.experiments.drawing import stacked, wrapped
from personaspace.experiments.experiment import Cost, Experiment, Names, Numbers, Options
from personaspace.experiments.kinds import BY_WORDS, KINDS, WHO, Said
from personaspace.experiments.results import Result
from personaspace.experiments.statistics import Estimate, shares_of, trend
from personaspace.experiments.trials import Ask, Condition, Given, Trials, capped, steered
from personaspace.prompts import Message, Sampling
from personaspace.report.figures import Block, Figure
from personaspace.space import PersonaSpace

PROMPT_TOKENS = 64
NO_ROLE = "no role"
UNDER = {"a role": "Under a role", NO_ROLE: "With no role at all"}


class SusceptibilityOptions(Options):
    """See the fields."""

    alphas: Numbers = Field(
        (-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3), description="Steering strengths, in units of the residual norm."
    )
    caps: Names = Field(("capped",), description="Caps of the space.")
    roles: int = Field(6, ge=1, description="How many roles; no role at all is asked as often as all of them together.")
    probes: int = Field(4, ge=1, le=12, description="Questions of each kind: who it is, what it has lived through.")
    max_new_tokens: int = Field(40, ge=1, description="At most that many tokens a reply.")


PUBLISHED = SusceptibilityOptions(roles=50, probes=12, max_new_tokens=512)


def conditions(options: SusceptibilityOptions) -> list[Condition]:
    """Steering from the far end to the Assistant's, then the caps."""
    return steered(sorted({*options.alphas, 0.0})) + capped(options.caps)


def cost(options: SusceptibilityOptions, catalog: Catalog) -> Cost:
    """What that asks of the engine."""
    n = len(conditions(options)) * 2 * options.roles * 2 * options.probes
    return Cost(n, n * (options.max_new_tokens + PROMPT_TOKENS))


def probes(n: int) -> list[tuple[str, str]]:
    """The first n questions of each kind, as (kind, text): who it is, and what it has lived through."""
    rows = data.lines("probes.jsonl")
    return [(r["kind"], r["text"]) for kind in ("who", "past") for r in [r for r in rows if r["kind"] == kind][:n]]


def asks(options: SusceptibilityOptions, catalog: Catalog) -> list[Ask]:
    """Every condition with every role and question, and as often with no role."""
    chosen: list[tuple[str, Role | None]] = [(r.role, r) for r in spread(catalog, options.roles)]
    chosen += [(f"{NO_ROLE} {k}", None) for k in range(options.roles)]
    found = []
    for condition in conditions(options):
        for name, role in chosen:
            for k, (kind, text) in enumerate(probes(options.probes)):
                system: tuple[Message, ...] = ()
                if role:
                    system = ({"role": "system", "content": role.instructions[k % len(role.instructions)]},)
                found.append(Ask(condition, f"{name}/{kind} {k}", (*system, {"role": "user", "content": text})))
    return found


def spread(catalog: Catalog, n: int) -> list[Role]:
    """Roles that are not machines themselves, evenly from the catalogue's list. Raises `UsageError` where there are fewer."""
    roles = [r for r in catalog.roles if not r.ai]
    if n > len(roles):
        raise UsageError(f"--roles {n}: the catalogue {catalog.name} has {len(roles)} that are not machines themselves")
    return [roles[k * len(roles) // n] for k in range(n)]


def run(trials: Trials[SusceptibilityOptions]) -> Result:
    """Asks, and sorts the replies. Raises `PersonaSpaceError`."""
    wanted = asks(trials.options, trials.catalog)
    judge = trials.judges.make(WHO, BY_WORDS)
    given = trials.ask(wanted, Sampling(max_new_tokens=trials.options.max_new_tokens))
    said = [Said(a.messages[-1]["content"], g.text) for a, g in zip(wanted, given, strict=True)]
    kinds = trials.judge(judge, said, "kinds") if judge else [None] * len(said)
    return evaluate(trials.space, trials.options, wanted, given, kinds, trials.judges.name)


def evaluate(
    space: PersonaSpace,
    options: SusceptibilityOptions,
    wanted: Sequence[Ask],
    given: Sequence[Given],
    kinds: Sequence[int | None],
    judge: str,
) -> Result:
    """Shares of kinds under each condition, and whether steering moves them. It asks nothing."""
    rows = [_table_row(a, g, k) for a, g, k in zip(wanted, given, kinds, strict=True)]
    names = [c.name for c in conditions(options)]
    shares = {under: {n: shares_of([r["kind"] for r in _of(rows, n, under)], KINDS) for n in names} for under in UNDER}
    trend = _trend(rows, "the Assistant")
    persona = _trend(rows, "a human with a past", "a nonhuman character", "theatrical or mystical", "another AI")
    ends = list(dict.fromkeys([names[0], "plain", names[len(names) - len(options.caps) - 1]]))
    told = "; ".join(f"{n} {shares['a role'][n]['the Assistant'].percent()}" for n in ends)
    headline = (
        f"Under a role the reply is the Assistant's in: {told}. Rank correlation of the strength with being the Assistant "
        f"there {trend}: {_effect(trend)}. The study: steered away, models more readily say that they are the person or thing "
        "they are told to be, and at high strength speak in a theatrical, mystical voice; steered towards, they resist role "
        "play."
    )
    key = [
        Figure("being the Assistant", f"{trend.value:+.2f}", f"under a role; rank correlation with α, {trend.span()}"),
        Figure(
            "being a character", f"{persona.value:+.2f}", f"under a role; rank correlation with α, {persona.span()}"
        ),
        Figure("replies", f"{len(rows):,}", f"{sum(r['kind'] is None for r in rows)} not judged"),
        Figure("sorted by", judge, "by words alone" if judge == "rules" else ""),
    ]
    lead = (
        f"{space.meta['model']['id']}, steered at layer {space.layer} in units of that layer's residual norm, is asked who "
        "it is and what it has lived through."
    )
    figures = {"shares": shares, "assistant_trend": trend, "persona_trend": persona, "judge": judge}
    return Result("Who does it say it is?", lead, headline, figures, rows, _blocks(names, rows, shares), key)


def _table_row(a: Ask, g: Given, kind: int | None) -> dict[str, Any]:
    who, probe = g.item.split("/")
    return {
        "condition": g.condition,
        "alpha": a.condition.alpha,
        "cap": a.condition.cap,
        "role": NO_ROLE if who.startswith(NO_ROLE) else who,
        "item": g.item,
        "probe": probe,
        "question": a.messages[-1]["content"],
        "text": g.text,
        "projection": g.projection,
        "kind": None if kind is None else KINDS[kind],
    }


def _of(rows: Sequence[dict[str, Any]], condition: str, under: str) -> list[dict[str, Any]]:
    return [r for r in rows if r["condition"] == condition and (r["role"] == NO_ROLE) == (under == NO_ROLE)]


def _trend(rows: Sequence[dict[str, Any]], *kinds: str) -> Estimate:
    """The rank correlation of α with being one of the kinds, over replies under a role that were judged and are not capped;
    over roles, since what one says to its questions is alike."""
    some = [r for r in rows if r["cap"] is None and r["kind"] is not None and r["role"] != NO_ROLE]
    return trend([r["alpha"] for r in some], [r["kind"] in kinds for r in some], [r["role"] for r in some])


def _effect(e: Estimate) -> str:
    if e.low > 0:
        return "the further away it is steered, the less it is"
    return "the further away it is steered, the more it is" if e.high < 0 else "no effect that can be told from none"


def _blocks(
    names: Sequence[str], rows: Sequence[dict[str, Any]], shares: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
) -> list[Block]:
    blocks = []
    for under, title in UNDER.items():
        examples = {
            (n, kind): f"<br><i>{wrapped(r['question'])}</i><br>{wrapped(r['text'])}"
            for n in names
            for kind in KINDS
            if (r := next((r for r in _of(rows, n, under) if r["kind"] == kind), None))
        }
        figure = stacked(
            names, KINDS, shares[under], examples, "steering, from away to towards the Assistant; then caps"
        )
        blocks.append(Block(title, "Point at a part for its share and a reply of that kind.", figure, 460))
    table = [[n, under, *(shares[under][n][k].percent() for k in KINDS)] for under in UNDER for n in names]
    head = ["condition", "under", *KINDS]
    return [*blocks, Block("In figures", "Shares with 95% intervals (Wilson).", head=head, rows=table)]


EXPERIMENT = Experiment(
    "susceptibility",
    "Who the model says it is while it is steered along the axis, and capped.",
    SusceptibilityOptions,
    PUBLISHED,
    cost,
    run,
    "personaspace experiment susceptibility smollm2 --out runs/susceptibility",
)
