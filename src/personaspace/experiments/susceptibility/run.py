"""Who the model says it is while it is steered along the axis, and capped.

The paper's section on steering.
"""

from __future__ import annotations

from personaspace.catalog import Catalog, Role
from personaspace.engines.prompts import Message, Sampling
from personaspace.errors import UsageError
from personaspace.experiments import data
from personaspace.experiments.kit.experiment import Experiment
from personaspace.experiments.kit.options import Cost, Names, Numbers, Options, option
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.speakers import BY_WORDS, WHO, Said
from personaspace.experiments.kit.trials import Ask, Condition, Trials, beside_axis, capped, steered
from personaspace.experiments.susceptibility.findings import NO_ROLE, Row, findings, table_row
from personaspace.experiments.susceptibility.page import page

PROMPT_TOKENS = 64


class SusceptibilityOptions(Options):
    """See the fields."""

    alphas: Numbers = option(
        (-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3), "Steering strengths, in units of the residual norm."
    )
    caps: Names = option(("capped",), "Caps of the space, or ways of holding by one: capped+mirror, …")
    roles: int = option(6, "How many roles; no role at all is asked as often as all of them together.", ge=1)
    probes: int = option(4, "Questions of each kind: who it is, what it has lived through.", ge=1, le=12)
    controls: int = option(
        20, "Random directions, along which the model is displaced as far, to compare with; 0: none.", ge=0, later=True
    )
    control_probes: int = option(1, "Questions of each kind that are asked along them.", ge=1, le=12, later=True)
    control_alphas: Numbers = option(
        (-0.4, -0.2, 0.3), "Strengths at which that is done; for a cap it always is.", later=True
    )
    max_new_tokens: int = option(40, "At most that many tokens a reply.", ge=1)


PUBLISHED = SusceptibilityOptions(roles=50, probes=12, max_new_tokens=512)


def conditions(options: SusceptibilityOptions) -> list[Condition]:
    """Steering from the far end to the Assistant's, then the caps."""
    return steered(sorted({*options.alphas, 0.0})) + capped(options.caps)


def controlled(options: SusceptibilityOptions) -> list[Condition]:
    """The conditions that random directions are set beside."""
    return [c for c in conditions(options) if c.cap or (c.alpha and c.alpha in options.control_alphas)]


def cost(options: SusceptibilityOptions, catalog: Catalog) -> Cost:
    """What that asks of the engine."""
    aside = len(beside_axis(controlled(options), options.controls)) * min(options.control_probes, options.probes)
    n = (len(conditions(options)) * 2 * options.probes + aside) * options.roles * 2
    return Cost(n, n * (options.max_new_tokens + PROMPT_TOKENS), n * options.max_new_tokens)


def probes(n: int) -> list[tuple[str, str]]:
    """The first n questions of each kind, as (kind, text): who it is, and what it has lived through."""
    rows = data.lines("probes.jsonl")
    return [(r["kind"], r["text"]) for kind in ("who", "past") for r in [r for r in rows if r["kind"] == kind][:n]]


def asks(options: SusceptibilityOptions, catalog: Catalog) -> list[Ask]:
    """Every condition with every role and question, and as often with no role."""
    chosen: list[tuple[str, Role | None]] = [(r.role, r) for r in spread(catalog, options.roles)]
    chosen += [(f"{NO_ROLE} {k}", None) for k in range(options.roles)]
    return [
        ask
        for condition in conditions(options)
        for name, role in chosen
        for ask in _of_one(condition, name, role, options)
    ]


def control_asks(options: SusceptibilityOptions, catalog: Catalog) -> list[Ask]:
    """Some of the same questions of the same roles, along random directions and a shuffled axis: all roles along each."""
    return [
        ask
        for condition in beside_axis(controlled(options), options.controls)
        for role in spread(catalog, options.roles)
        for k, ask in enumerate(_of_one(condition, role.role, role, options))
        if k % options.probes < options.control_probes
    ]


def _of_one(condition: Condition, name: str, role: Role | None, options: SusceptibilityOptions) -> list[Ask]:
    questions = []
    for k, (kind, text) in enumerate(probes(options.probes)):
        system: tuple[Message, ...] = ()
        if role:
            system = ({"role": "system", "content": role.instructions[k % len(role.instructions)]},)
        questions.append(Ask(condition, f"{name}/{kind} {k}", (*system, {"role": "user", "content": text})))
    return questions


def spread(catalog: Catalog, n: int) -> list[Role]:
    """Roles that are not machines themselves, evenly from the catalogue's list. Raises `UsageError` where there are fewer."""
    roles = [r for r in catalog.roles if not r.ai]
    if n > len(roles):
        raise UsageError(f"--roles {n}: the catalogue {catalog.name} has {len(roles)} that are not machines themselves")
    return [roles[k * len(roles) // n] for k in range(n)]


def run(trials: Trials[SusceptibilityOptions]) -> Result:
    """Asks, and sorts the replies. Raises `PersonaSpaceError`."""
    options, catalog = trials.options, trials.catalog
    sampling = Sampling(max_new_tokens=options.max_new_tokens)
    judge = trials.judges.make(WHO, BY_WORDS)
    parts = [
        ("speakers", "part", asks(options, catalog)),
        ("speakers-control", "control", control_asks(options, catalog)),
    ]
    rows: list[Row] = []
    for scores, part, requests in parts:
        replies = trials.ask(requests, sampling, part=part, seeds="part")
        items = [Said(a.messages[-1]["content"], g.text) for a, g in zip(requests, replies, strict=True)]
        kinds = trials.judge(judge, items, scores)
        rows += [table_row(a, g, k) for a, g, k in zip(requests, replies, kinds, strict=True)]
    return page(trials.space, findings(conditions(options), rows), rows, trials.judges.name)


EXPERIMENT = Experiment("susceptibility", PUBLISHED, cost, run)
