"""How well words sort replies, measured on replies that somebody read and labelled; it knows nothing of how they sort."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from personaspace.experiments import data
from personaspace.experiments.kit.speakers import KINDS
from personaspace.report.page import Page
from personaspace.stats.intervals import Estimate, share

MEASURED = "kinds_measured.jsonl"
"""What came out on the half of the labelled replies that no rule was made on; a test makes it anew from those replies."""


@dataclass(frozen=True)
class SortedKind:
    """Of the replies that a reader gave a kind to, the share that words give the same (recall); of those that words give it,
    the share that the reader gave the same (precision)."""

    kind: str
    recall: Estimate
    precision: Estimate


@dataclass(frozen=True)
class Sorting:
    """n: labelled replies; agreement: the share that words sort as the reader did; kinds: one by one."""

    n: int
    agreement: Estimate
    kinds: tuple[SortedKind, ...]


def confusion(pairs: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """How often each kind by reading was sorted into each by words, from pairs of the two; only what occurs."""
    counts = Counter(pairs)
    return [
        {"read": by_reading, "sorted": by_words, "replies": counts[by_reading, by_words]}
        for by_reading in KINDS
        for by_words in KINDS
        if counts[by_reading, by_words]
    ]


def sorting(rows: Iterable[Mapping[str, Any]] | None = None) -> Sorting:
    """Recall and precision of each kind with Wilson's intervals, from the rows of `confusion`: those that come with the
    package unless others are passed."""
    pairs = [
        (row["read"], row["sorted"])
        for row in (data.lines(MEASURED) if rows is None else rows)
        for _ in range(row["replies"])
    ]
    kinds = tuple(
        SortedKind(
            kind,
            share([by_words == kind for by_reading, by_words in pairs if by_reading == kind]),
            share([by_reading == kind for by_reading, by_words in pairs if by_words == kind]),
        )
        for kind in KINDS
    )
    return Sorting(len(pairs), share([by_reading == by_words for by_reading, by_words in pairs]), kinds)


def tell_sorting(page: Page, measured: Sorting) -> None:
    """Adds a table of it to an experiment's page."""

    def cell(estimate: Estimate) -> str:
        return f"{estimate:.0%} of {estimate.n}" if estimate.n else "none"

    text = (
        f"{measured.n} replies of SmolLM2-135M under such conditions, which one reader labelled and no rule was made on: "
        f"words sort {measured.agreement:.0%} of them as the reader did. Of another model's replies, or longer ones, nothing "
        "is known."
    )
    head = ["kind", "of the replies read so, sorted so", "of the replies sorted so, read so"]
    rows = [[each.kind, cell(each.recall), cell(each.precision)] for each in measured.kinds]
    page.section("How well words sort", text, head=head, rows=rows)
