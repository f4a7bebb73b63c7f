"""How it is told and drawn who speaks in a steered model's replies; it knows nothing of how they were counted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from personaspace.experiments.kit.beside import tell_beside
from personaspace.experiments.kit.conditions import PLAIN
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.speakers import KINDS, TELLING
from personaspace.experiments.susceptibility import findings as speaking
from personaspace.experiments.susceptibility.findings import ASSISTANT, AWAY, BROKEN, RANDOM, ROLE, TOWARDS, UNDER
from personaspace.experiments.susceptibility.sorting import sorting, tell_sorting
from personaspace.report.charts import across, beside, stacked, wrapped
from personaspace.report.page import NEAR, SOFT, Chart, Page
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import Estimate

STUDY = (
    "The study: steered away, models more readily say that they are the person or thing they are told to be, and at high "
    "strength speak in a theatrical, mystical voice; steered towards, they resist role play."
)
LEAD = (
    "{model}, steered at layer {layer} in units of that layer's residual norm, is asked who it is and what it has lived "
    "through: {n:,} replies, {unjudged} not judged. Beside it, replies while it is moved as far along random directions."
)
STACKED = (
    "Shares of all replies, those that do not tell who is speaking hatched in grey. Point at a part for its share and a reply "
    "of that kind."
)
COMPARED = (
    "The Assistant's share, of the replies under a role that tell, where the model is moved along the axis or held by a cap, "
    "and where each token is moved as far along random directions at right angles to the axis; plain is dotted. Intervals are "
    "over replies (Wilson), and to fewer questions along random directions."
)
SHARES = (
    "How many replies tell who is speaking, and of these the shares of kinds, with 95% intervals (Wilson): those that don't "
    "tell are missing from them. Where fewer tell, the shares are those of a smaller part."
)
EFFECTS = (
    "Of the replies under a role that tell; intervals are over roles. An effect is claimed where its interval leaves 0 out and "
    "it lies beyond the random directions, on the questions and at the strengths that those were asked."
)
EFFECTS_HEAD = ("what is done", "measured by", "along the axis, all questions", "claimed")
MEASURE = "rank correlation with α; of a cap, the difference to plain"
BESIDE = (
    "Of the replies under a role that tell, to the questions and at the strengths that were asked along all of them."
)


def page(
    space: PersonaSpace, findings: speaking.SusceptibilityFindings, rows: Sequence[speaking.Row], judge: str
) -> Result:
    """The result: who speaks under each condition, how many replies tell, and what random directions do."""
    measured = sorting() if judge == "rules" else None
    unjudged = sum(r["kind"] is None for r in rows)
    lead = LEAD.format(model=space.meta["model"]["id"], layer=space.layer, n=len(rows), unjudged=unjudged)
    result_page = Page("Who does it say it is?", lead)
    telling = [e for n in findings.names if (e := findings.telling[ROLE][n]).n]
    if telling:
        values = [100 * e.value for e in telling]
        between = f"under a role; from {min(values):.0f} to {max(values):.0f}% by condition"
        result_page.figure("replies that tell who speaks", findings.telling_of_all, between, ".0%")
    else:
        result_page.figure("replies that tell who speaks", "none judged")
    ranked = "of those that tell; rank correlation with α"
    result_page.figure("being the Assistant", findings.assistant_trend, ranked)
    result_page.figure("being a character", findings.persona_trend, ranked)
    if measured:
        result_page.figure("sorted as a reader does", measured.agreement, f"of {measured.n} replies, by words", ".0%")
    else:
        result_page.figure("sorted by", judge)

    for under, heading in UNDER.items():
        examples: dict[tuple[str, str], str] = {}
        for r in rows:
            if (r["role"] == speaking.NO_ROLE) == (under == speaking.NO_ROLE) and r["kind"] is not None:
                hover = f"<br><i>{wrapped(r['question'])}</i><br>{wrapped(r['text'])}"
                examples.setdefault((r["condition"], r["kind"]), hover)
        shares = findings.shares_of_all[under]
        result_page.section(
            heading, STACKED, stacked(findings.names, KINDS, shares, examples, "steering, then caps", 480)
        )
        if under == ROLE and findings.control_shares:
            result_page.section("Beside random directions", COMPARED, _beside_random(findings))
    table = [
        (n, under, findings.telling[under][n], findings.shares[under][n]) for under in UNDER for n in findings.names
    ]
    table += [(f"{n}, {RANDOM}", ROLE, findings.control_telling[n], of) for n, of in findings.control_shares.items()]
    cells = [[n, under, f"{tell:.0%}", *(_of_telling(of[kind]) for kind in TELLING)] for n, under, tell, of in table]
    result_page.section("In figures", SHARES, head=["condition", "under", "tell who speaks", *TELLING], rows=cells)
    title = "What the axis does that random directions don't"
    result_page.section(title, EFFECTS, head=EFFECTS_HEAD, rows=[_effect_row(*effect) for effect in _effects(findings)])
    beside_others = {f"{name}, {kind}": effect.beside for name, kind, effect in _effects(findings) if effect.beside}
    tell_beside(result_page, beside_others, MEASURE, BESIDE)
    if measured:
        tell_sorting(result_page, measured)
    figures = {name: value for name, value in vars(findings).items() if name not in ("names", "ends")}
    return Result(result_page, headline(findings), {**figures, "judge": judge, "sorting": measured}, rows)


def headline(findings: speaking.SusceptibilityFindings) -> str:
    """What was seen, and nothing that random directions would do as well."""
    shares, ends = findings.shares[ROLE], findings.ends
    assistant = ", ".join(f"{n} {_of_telling(shares[n][ASSISTANT])}" for n in ends)
    broken = ", ".join(f"{n} {_percent(shares[n][BROKEN])}" for n in ends)
    many = ", ".join(f"{n} {_percent(findings.telling[ROLE][n])}" for n in ends)
    differs = (
        "How many tell differs with the strength, so that these are shares of different replies"
        if findings.telling_trend.direction()
        else "How many tell does not differ with the strength as far as can be told"
    )
    line = (
        f"Under a role, of the replies that tell who is speaking, the Assistant's are: {assistant}; incoherent ones: "
        f"{broken}. {differs}: {many}. {' '.join(_sentence(*effect) for effect in _effects(findings))} {STUDY}"
    )
    # A strength stays in one line, and a minus is one.
    return re.sub(r"(?<=[ (])-(?=\d)", "−", line).replace("α ", "α\u00a0")


def _effects(findings: speaking.SusceptibilityFindings) -> list[tuple[str, str, speaking.SpeakerShift]]:
    """What is done, what it is measured on, and what it does."""
    effects = [(name, ASSISTANT, effect) for name, effect in findings.effects.items()]
    if findings.broken:
        effects.insert(1, (AWAY, BROKEN, findings.broken))
    return effects


def _sentence(name: str, kind: str, effect: speaking.SpeakerShift) -> str:
    """What may be said of steering to one side, or of a cap."""
    steering = name in (AWAY, TOWARDS)

    def size(estimate: Estimate) -> str:
        return f"{estimate:+.2f}" if steering else f"{estimate.points()} points"

    subject = name.capitalize() if steering else f"Under “{name}”"
    along = f"rank correlation with α {size(effect.axis)}" if steering else size(effect.axis)
    if effect.beside is None:
        return f"{subject}, being {kind}: {along}; no random direction was set beside it, so nothing is claimed."
    compared = f"{along}; on the questions of both {effect.beside.effect:+.2f}, {effect.beside.told()}"
    if effect.direction:
        # Away from the Assistant α falls: what rises with α becomes rarer there.
        rises = effect.direction < 0 if name == AWAY else effect.direction > 0
        often = f"{'more' if rises else 'less'} often"
        return f"{subject}, replies are {kind} {often}, and more so than along random directions ({compared})."
    if effect.axis.direction():
        return f"{subject}, being {kind} changes, as far as can be told not apart from what random directions do ({compared})."
    return f"{subject}, no effect on being {kind} that can be told from none ({compared})."


def _effect_row(name: str, kind: str, effect: speaking.SpeakerShift) -> list[str]:
    measure = "rank correlation with α" if name in (AWAY, TOWARDS) else "difference to plain"
    claimed = {1: "yes, up", -1: "yes, down", 0: "no"}[effect.direction]
    return [name, f"{kind}, {measure}", f"{effect.axis:+.2f}", claimed]


def _beside_random(findings: speaking.SusceptibilityFindings) -> Chart:
    names = [n for n in findings.names if n in findings.control_shares or n == PLAIN.name]
    plain = findings.shares[ROLE][PLAIN.name][ASSISTANT]
    series: dict[str, list[Estimate | None]] = {
        "along the axis": [findings.shares[ROLE][n][ASSISTANT] for n in names],
        f"along {RANDOM}": [findings.control_shares.get(n, {}).get(ASSISTANT) for n in names],
    }
    shapes = [across(y=plain.value)] if plain.n else []
    title = "the Assistant's share"
    return beside(names, series, title, colours=(NEAR, SOFT), percent=True, height=400, shapes=shapes)


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.0f}%" if estimate.n else "none"


def _of_telling(estimate: Estimate) -> str:
    """A share of the replies that tell; how many do stands beside it."""
    return f"{replace(estimate, missing=0):.0%}" if estimate.n else "none tell"
