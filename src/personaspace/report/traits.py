"""Traits in words, as lines, a table and what a chart is drawn from: all of a summary's `traits`; it computes no figure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from personaspace.report.words import number

Rows = Sequence[dict[str, Any]]

HEAD = ("trait", "cosine", "95%", "as measured", "reliability", "other wordings", "")
NAMED = 5
MEANING = (
    "A trait's vector is what its instructions bring out less what they suppress, at the prompt's last token, question by "
    "question. Its cosine with the axis has the noise of both taken out; {over}. "
    "Reliability: of the vector, by questions; beside it, with other instructions as well."
)
OVER = {
    "wordings": "{of} holds how traits differ between their wordings, too",
    "questions": "{of} is over questions alone, so that other wordings of the trait may lie outside it",
    None: "whether {of} holds other wordings of the trait, this space does not say",
}
TOGETHER, BY_ITSELF = "5% for all of them together", "5% for each by itself"


def label(name: str) -> str:
    """A trait's name, for people."""
    return name.replace("_", " ")


def meaning(rows: Rows) -> str:
    """What the table's figures are, and over what its intervals are."""
    counts = {over: sum(row["interval_over"] == over for row in rows if row["interval"]) for over in OVER}
    present = {over: n for over, n in counts.items() if n}
    parts = [
        OVER[over].format(of="the interval" if len(present) == 1 else f"that of {n} trait{'s' if n > 1 else ''}")
        for over, n in present.items()
    ]
    return MEANING.format(over="; ".join(parts) or "no interval of it is known")


def _corrected(known: Rows) -> str:
    """For how many looks together it is 5% likely that a trait is told from nothing which is none."""
    by_itself = sum(row["read_with"] == 1 if row["read_with"] else bool(row["from"]) for row in known)
    if not by_itself:
        return TOGETHER
    if by_itself == len(known):
        return TOGETHER if len(known) == 1 else BY_ITSELF
    others = f"for the other {by_itself} each by itself" if by_itself > 1 else "for the other one by itself"
    return f"5% for {len(known) - by_itself} that were read at once together, and {others}"


def headline(rows: Rows) -> str:
    """What may be said of the traits: how many can be told from nothing, and those furthest along the axis either way."""
    known = [row for row in rows if row["clear"] is not None]
    if not known:
        return f"{len(rows)} traits; how sure their vectors are, this space does not say."
    clear = [row for row in known if row["clear"]]
    unclear = len(known) - len(clear)
    sentence = f"Of {len(known)} traits, {unclear} can't be told from nothing along the axis ({_corrected(known)})" + (
        f", nor are {len(rows) - len(known)} known that came with the space." if len(known) < len(rows) else "."
    )
    alone = [row for row in known if row["interval"] and row["interval"][0] * row["interval"][1] > 0]
    if len(alone) > len(clear):
        sentence += f" Taken one by one, {len(alone)} can, of which {0.05 * len(known):.0f} would by chance."
    near = [label(row["name"]) for row in clear if row["cosine"] > 0][:NAMED]
    far = [label(row["name"]) for row in reversed(clear) if row["cosine"] < 0][:NAMED]
    if near or far:
        ends = (("Towards the Assistant: ", near), ("Away from it: ", far))
        sentence += " " + " ".join(f"{start}{', '.join(names)}." for start, names in ends if names)
    medians = {
        label: median(values)
        for label, key in (("by questions", "reliability"), ("with other wordings", "reliability_by_wording"))
        if (values := [row[key] for row in known if row[key] is not None])
    }
    if medians:
        figures = " and ".join(f"{number(value)} {label}" for label, value in medians.items())
        sentence += f" A vector's reliability is {figures} in the median."
    return sentence


def cells(row: dict[str, Any]) -> list[str]:
    """A trait in a table, under `HEAD`."""
    interval = row["interval"]
    return [
        label(row["name"]),
        "" if row["cosine"] is None else f"{row['cosine']:+.2f}",
        "" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}",
        f"{row['measured']:+.2f}",
        number(row["reliability"]),
        number(row["reliability_by_wording"]),
        "" if row["clear"] is None or row["clear"] else "not told from nothing",
    ]


def ends(rows: Rows, n: int = NAMED) -> list[dict[str, Any]]:
    """The traits at both ends, those in between left out."""
    return list(rows) if len(rows) <= 2 * n else [*rows[:n], *rows[-n:]]
