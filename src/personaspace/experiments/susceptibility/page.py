"""How it is told and drawn who speaks in a steered model's replies; it knows nothing of how they were counted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from personaspace.experiments.kit.conditions import PLAIN
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.speakers import KINDS, TELLING
from personaspace.experiments.susceptibility.findings import (
    ASSISTANT,
    AWAY,
    BROKEN,
    RANDOM,
    ROLE,
    TOWARDS,
    UNDER,
    Row,
    SpeakerShift,
    SusceptibilityFindings,
    rows_of,
)
from personaspace.experiments.susceptibility.sorting import sorting, sorting_block
from personaspace.report.charts import axis, dots, stacked, wrapped
from personaspace.report.page import NEAR, SOFT, Block, Figure
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import Estimate

STUDY = (
    "The study: steered away, models more readily say that they are the person or thing they are told to be, and at high "
    "strength speak in a theatrical, mystical voice; steered towards, they resist role play."
)


def page(space: PersonaSpace, findings: SusceptibilityFindings, rows: Sequence[Row], judge: str) -> Result:
    """The result: who speaks under each condition, how many replies tell, and what random directions do."""
    by_words = judge == "rules"
    measured = sorting() if by_words else None
    telling = [findings.telling[ROLE][n] for n in findings.names]
    judged = sum(e.n for e in telling)
    telling_replies = sum(round(e.value * e.n) for e in telling if e.n)
    key = [
        Figure(
            "replies that tell who speaks",
            f"{100 * telling_replies / judged:.0f}%" if judged else "none judged",
            f"under a role; from {_range(telling)} by condition",
        ),
        Figure("being the Assistant", f"{findings.assistant_trend.value:+.2f}", _trend_note(findings.assistant_trend)),
        Figure("being a character", f"{findings.persona_trend.value:+.2f}", _trend_note(findings.persona_trend)),
        Figure(
            "sorted by",
            judge,
            f"by words, which agree with a reader in {measured.agreement:.0%} of {measured.n} replies"
            if measured
            else "",
        ),
    ]
    lead = (
        f"{space.meta['model']['id']}, steered at layer {space.layer} in units of that layer's residual norm, is asked who "
        f"it is and what it has lived through: {len(rows):,} replies, {sum(r['kind'] is None for r in rows)} not judged. "
        "Beside it, replies while it is moved as far along random directions."
    )
    figures: dict[str, Any] = {
        "shares": findings.shares,
        "shares_of_all": findings.shares_of_all,
        "telling": findings.telling,
        "assistant_trend": findings.assistant_trend,
        "persona_trend": findings.persona_trend,
        "telling_trend": findings.telling_trend,
        "effects": findings.effects,
        "broken": findings.broken,
        "control_shares": findings.control_shares,
        "control_telling": findings.control_telling,
        "judge": judge,
        "sorting": measured,
    }
    blocks = _blocks(findings, rows)
    if measured:
        blocks.append(sorting_block(measured))
    return Result("Who does it say it is?", lead, headline(findings), figures, rows, blocks, key)


def headline(findings: SusceptibilityFindings) -> str:
    """What was seen, and nothing that random directions would do as well."""
    shares, telling = findings.shares[ROLE], findings.telling[ROLE]
    ends = findings.ends
    assistant = ", ".join(f"{n} {_of_telling(shares[n][ASSISTANT])}" for n in ends)
    broken = ", ".join(f"{n} {_percent(shares[n][BROKEN])}" for n in ends)
    many = ", ".join(f"{n} {_percent(telling[n])}" for n in ends)
    trend = findings.telling_trend
    differs = (
        "How many tell differs with the strength, so that these are shares of different replies"
        if trend.direction()
        else "How many tell does not differ with the strength as far as can be told"
    )
    done = [_sentence(name, effect) for name, effect in findings.effects.items()]
    if findings.broken:
        done.insert(1, _sentence(AWAY, findings.broken, BROKEN))
    line = (
        f"Under a role, of the replies that tell who is speaking, the Assistant's are: {assistant}; incoherent ones: {broken}. "
        f"{differs}: {many}. {' '.join(done)} {STUDY}"
    )
    # A strength stays in one line, and a minus is one.
    return re.sub(r"(?<=[ (])-(?=\d)", "−", line).replace("α ", "α\u00a0")


def _sentence(name: str, effect: SpeakerShift, kind: str = ASSISTANT) -> str:
    """What may be said of steering to one side, or of a cap."""
    steering = name in (AWAY, TOWARDS)

    def size(estimate: Estimate) -> str:
        return f"{estimate:+.2f}" if steering else f"{estimate.points()} points"

    subject = name.capitalize() if steering else f"Under “{name}”"
    along = f"rank correlation with α {size(effect.axis)}" if steering else size(effect.axis)
    if effect.difference is None or effect.control is None:
        return f"{subject}, being {kind}: {along}; no random direction was set beside it, so nothing is claimed."
    compared = f"{along}; apart from random directions by {size(effect.difference)}"
    if effect.direction:
        # Away from the Assistant α falls: what rises with α becomes rarer there.
        rises = effect.direction < 0 if name == AWAY else effect.direction > 0
        often = f"{'more' if rises else 'less'} often"
        return f"{subject}, replies are {kind} {often}, and more so than along random directions ({compared})."
    if effect.axis.direction():
        return f"{subject}, being {kind} changes, as far as can be told not apart from what random directions do ({compared})."
    return f"{subject}, no effect on being {kind} that can be told from none ({compared})."


def _blocks(findings: SusceptibilityFindings, rows: Sequence[Row]) -> list[Block]:
    names = findings.names
    title = "steering, then caps"
    blocks = []
    for under, heading in UNDER.items():
        examples = {
            (n, kind): f"<br><i>{wrapped(r['question'])}</i><br>{wrapped(r['text'])}"
            for n in names
            for kind in KINDS
            if (r := next((r for r in rows_of(rows, n, under) if r["kind"] == kind), None))
        }
        text = (
            "Shares of all replies, those that do not tell who is speaking hatched in grey. Point at a part for its share and "
            "a reply of that kind."
        )
        blocks.append(Block(heading, text, stacked(names, KINDS, findings.shares_of_all[under], examples, title), 480))
    if findings.control_shares:
        blocks.insert(1, _control_block(findings))
    table = [
        [n, under, f"{findings.telling[under][n]:.0%}", *(_of_telling(findings.shares[under][n][k]) for k in TELLING)]
        for under in UNDER
        for n in names
    ]
    table += [
        [f"{n}, {RANDOM}", ROLE, f"{findings.control_telling[n]:.0%}", *(_of_telling(shares[k]) for k in TELLING)]
        for n, shares in findings.control_shares.items()
    ]
    text = (
        "How many replies tell who is speaking, and of these the shares of kinds, with 95% intervals (Wilson): those that "
        "don't tell are missing from them. Where fewer tell, the shares are those of a smaller part."
    )
    return [
        *blocks,
        Block("In figures", text, head=["condition", "under", "tell who speaks", *TELLING], rows=table),
        _effects_block(findings),
    ]


def _control_block(findings: SusceptibilityFindings) -> Block:
    names = [n for n in findings.names if n in findings.control_shares or n == PLAIN.name]
    compared = [n for n in names if n in findings.control_shares]
    along = dots("along the axis", names, [findings.shares[ROLE][n][ASSISTANT] for n in names], NEAR, percent=True)
    random = dots(
        f"along {RANDOM}", compared, [findings.control_shares[n][ASSISTANT] for n in compared], SOFT, percent=True
    )
    for trace in (along, random):
        trace["offsetgroup"] = trace["name"]
    plain = findings.shares[ROLE][PLAIN.name][ASSISTANT]
    layout: dict[str, Any] = {
        "scattermode": "group",
        "scattergap": 0.7,
        "xaxis": axis("", type="category", categoryorder="array", categoryarray=names),
        "yaxis": axis("the Assistant's share", tickformat=".0%", range=[-0.02, 1]),
    }
    if plain.n:
        line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": plain.value, "y1": plain.value}
        layout["shapes"] = [{**line, "line": {"color": SOFT, "width": 1, "dash": "dot"}}]
    text = (
        "The Assistant's share, of the replies under a role that tell, where the model is moved along the axis or held by a "
        "cap, and where each token is moved as far along random directions at right angles to the axis, each role along "
        "directions of its own; plain is dotted. Intervals are over replies (Wilson)."
    )
    return Block("Beside random directions", text, {"data": [along, random], "layout": layout}, 400)


def _effects_block(findings: SusceptibilityFindings) -> Block:
    effects = [(name, ASSISTANT, effect) for name, effect in findings.effects.items()]
    if findings.broken:
        effects.insert(1, (AWAY, BROKEN, findings.broken))
    missing = "not asked"
    rows = [
        [
            name,
            f"{kind}, {'rank correlation with α' if name in (AWAY, TOWARDS) else 'difference to plain'}",
            f"{effect.axis:+.2f}",
            f"{effect.control:+.2f}" if effect.control else missing,
            f"{effect.difference:+.2f}" if effect.difference else missing,
            {1: "yes, up", -1: "yes, down", 0: "no"}[effect.direction],
        ]
        for name, kind, effect in effects
    ]
    text = (
        "Of the replies under a role that tell. An effect is claimed where it lies on the same side of "
        "nothing as its difference to that of random directions, at the strengths that both were asked at; intervals are over "
        "roles, each with random directions of its own."
    )
    head = ["what is done", "measured by", "along the axis", RANDOM, "the difference", "more than random"]
    return Block("What the axis does that random directions don't", text, head=head, rows=rows)


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.0f}%" if estimate.n else "none"


def _of_telling(estimate: Estimate) -> str:
    """A share of the replies that tell; how many do stands beside it."""
    return f"{replace(estimate, missing=0):.0%}" if estimate.n else "none tell"


def _range(estimates: Sequence[Estimate]) -> str:
    values = [e.value for e in estimates if e.n]
    return f"{100 * min(values):.0f} to {100 * max(values):.0f}%" if values else "nothing"


def _trend_note(estimate: Estimate) -> str:
    return f"of those that tell; rank correlation with α, {estimate.span()}"
