"""What a space's figures mean, in words for somebody who meets them for the first time; it computes none of them.

Everything is said of a summary (`PersonaSpace.summary()`, or one of its `readings`), so that terminal, page, model card and
comparison say the same. What a space does not know is said to be not known, never guessed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from personaspace.space.readings import PROMPT
from personaspace.stats.forecast import KNOWN, TARGET

Summary = Mapping[str, Any]

ASKS = {
    "axis": "Which way does the Assistant lie?",
    "order": "Which roles are more like the Assistant?",
    "map": "Which roles are like each other?",
}
"""The question that each of the three reliabilities answers."""

INTRODUCTION = (
    f"How well a second map, made like this one from other questions, would agree with it: 1 is exactly, 0 not at all. "
    f"What lies under {KNOWN} counts as not known."
)
SOURCE = (
    "From halves of the data that share no question, taken to the whole by Spearman–Brown, which also tells what "
    f"{TARGET} would take."
)
UNTOLD = "This space does not say. A map of the model, made with this version, does."


@dataclass(frozen=True)
class Reliability:
    """One of the three of one reading. value, interval, by_text: None where the space does not know them; by_text is the same
    with other instructions as well as other questions. known: whether it is 0.7 or more. meaning, takes: sentences; takes is
    empty where there is nothing to forecast."""

    name: str
    reading: str
    value: float | None
    interval: tuple[float, float] | None
    by_text: float | None
    known: bool | None
    meaning: str
    takes: str

    @property
    def shown(self) -> str:
        """The value as it is printed."""
        return number(self.value)


def number(value: float | None) -> str:
    """A reliability, rounded down, so that nothing under a mark is printed as the mark; closer to 1 with a digit more.

    >>> number(0.699), number(0.9957)
    ('0.69', '0.995')
    """
    if value is None:
        return "–"
    digits = 3 if value >= 0.99 else 2
    return f"{math.floor(value * 10**digits + 1e-9) / 10**digits:.{digits}f}"


def duration(seconds: float) -> str:
    """A length of time, for people.

    >>> duration(45), duration(5400), duration(200_000)
    ('45 s', '1.5 h', '2.3 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours = seconds / 3600
    return f"{seconds / 60:.0f} min" if hours < 1.5 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def noun(reading: str) -> str:
    """What a reading is counted in."""
    return "prompts" if reading == PROMPT else "replies"


def read_from(reading: str, n: int | None = None) -> str:
    """What a reading was taken from, and where in it."""
    where = (
        "each at its last token, before anything is generated" if reading == PROMPT else "each the mean over its tokens"
    )
    return f"{f'{n:,} ' if n else ''}{noun(reading)}, {where}"


def reliabilities(worth: Summary) -> list[Reliability]:
    """The three of a reading, each with what it means and what 0.9 would take.

    >>> summary = ps.PersonaSpace.load("smollm2").summary()
    >>> [(r.name, r.shown, r.known) for r in reliabilities(summary["readings"]["prompt"])]
    [('axis', '0.995', True), ('order', '0.96', True), ('map', '0.89', True)]
    """
    by_text, intervals = worth["reliability_by_instruction"] or {}, worth["reliability_interval"]
    three = []
    for name, value in worth["reliability"].items():
        if value is not None:
            meaning = _meaning(name, value, intervals.get(name))
        elif worth["neighbours_known" if name == "map" else "order_known"] is None or not worth.get("per_role"):
            meaning = UNTOLD  # the space never looked
        else:
            # There was too little to look at.
            counted = f"at {worth['per_role']} a role, halves of the {noun(worth['reading'])}"
            meaning = f"Not known: {counted} share too few roles to tell."
        three.append(
            Reliability(
                name,
                worth["reading"],
                value,
                tuple(intervals[name]) if intervals.get(name) else None,
                by_text.get(name),
                None if value is None else value >= KNOWN,
                meaning,
                _takes(worth, name),
            )
        )
    return three


def _meaning(name: str, value: float, interval: list[float | None] | None) -> str:
    """What a reliability says of a second map, as a sentence; one that is not known says so first."""
    is_known, shown, spread = value >= KNOWN, number(value), ""
    if interval and name == "map":
        spread = f" (95%: {share_of_noise(interval[1])} to {share_of_noise(interval[0])})"
    elif interval:
        spread = f" (95%: {number(interval[0])} to {number(interval[1])})"
    if name == "axis":
        way = "nearly the same way" if value >= TARGET else "much the same way" if is_known else "another way"
        text = f"mapped again, the axis would point {way}: cosine {shown} with this one{spread}."
    elif name == "order" and is_known:
        text = f"mapped again, the roles' places along the axis would correlate {shown} with these{spread}."
    elif name == "order":
        text = f"mapped again, the roles would stand in another order: correlation {shown} with this one{spread}."
    else:
        text = f"of the roles' squared distances, {share_of_noise(value)} is noise{spread}."
    return f"{text[0].upper()}{text[1:]}" if is_known else f"Not known: {text}"


def share_of_noise(value: float | None) -> str:
    """1 − the map's reliability, as printed beside it."""
    if value is None:
        return number(value)
    percent = 100 * (1 - float(number(value)))
    return f"{percent:.0f}%" if percent >= 1 else f"{percent:.1f}%"


def _takes(worth: Summary, name: str) -> str:
    """What it would take for a reliability to be 0.9; empty where it is, or where there is nothing to forecast from."""
    forecast = worth["forecast"].get(name)
    if forecast is None:
        return ""
    times = forecast["times"]
    if times is None:
        return f"Nothing repeats yet, so that what {TARGET} would take can't be told."
    if times <= 1:
        return ""
    # Tenths are known of a few times, and of many only their size.
    text = f"{TARGET} would take {f'{times:.1f}' if times < 9.95 else f'{_round(times):,}'} times the data"
    if forecast["responses"]:
        each = f", {math.ceil(worth['per_role'] * times - 1e-6)} a role" if worth.get("per_role") else ""
        text += f": about {_round(forecast['responses']):,} {noun(worth['reading'])}{each}"
    if (forecast.get("seconds") or 0) >= 1:
        text += f"; {duration(forecast['seconds'])} more on the machine that made this"
    return f"{text}."


def _round(x: float) -> int:
    """To two digits: a forecast is not known to more."""
    size: int = 10 ** max(0, math.floor(math.log10(max(x, 1))) - 1)
    return round(x / size) * size


def order(worth: Summary) -> str:
    """What stands beside a list of roles: how sure their order is."""
    value = worth["reliability"]["order"]
    if value is None and worth["order_known"] is False:
        return (
            "The order is not known: halves of what was asked share too few roles to tell, so that none is named first or "
            "last here."
        )
    if value is None:
        return "How sure this order is, the space does not say; a map of the model, made with this version, does."
    if value < KNOWN:
        return (
            f"The order is not known (reliability {number(value)}): mapped again, the roles would stand in another one, "
            "so that none is named first or last here."
        )
    return f"The order is known to {number(value)}; roles whose intervals overlap may still change places."


def likeness(worth: Summary) -> str:
    """What stands beside a role's most similar ones: how sure these are."""
    value = worth["reliability"]["map"]
    if value is None:
        return "How much of this is noise, the space does not say."
    if value < KNOWN:
        return f"Not known (reliability {number(value)}): of the roles' squared distances, {share_of_noise(value)} is noise."
    return "Cosines with 95% intervals; only roles that stand out from noise."


def agreement(summary: Summary) -> str:
    """Whether the two readings tell the same order, where each knows one; empty where that was not measured."""
    agree = summary.get("readings_agree")
    if not agree:
        return ""
    orders = {reading: worth["reliability"]["order"] for reading, worth in summary["readings"].items()}
    if unknown := [noun(reading) for reading, value in orders.items() if value is not None and value < KNOWN]:
        return (
            "Whether the two readings tell the same order of the roles is not known, as the order itself is not, from "
            f"{' and '.join(unknown)}."
        )
    low, high = agree["interval"]
    return (
        f"The two readings tell the order of the roles alike to {agree['order']:.2f} (95%: {low:.2f} to {high:.2f}), the noise "
        "of either taken out: the prompts of one half against the replies of the other."
    )


def nearest(summary: Summary) -> str:
    """What a reply's nearest roles are worth; empty where that was not measured."""
    measured = summary.get("nearest")
    if not measured or not measured["n"]:
        return ""
    return (
        f"The {measured['k']} roles that a reply lies nearest to are a hint, no more: a role's own replies have it among them "
        f"in {100 * measured['own']:.0f}% of {measured['n']} (by chance {100 * measured['chance']:.0f}%)."
    )


def brief(worth: Summary) -> str:
    """The three in one line."""
    three = reliabilities(worth)
    parts = [f"{r.name} {r.shown}{' (not known)' if r.known is False else ''}" for r in three]
    value = worth["reliability"]["map"]
    noise = "" if value is None else f"; of the roles' squared distances, {share_of_noise(value)} is noise"
    return f"{', '.join(parts)}{noise}"


@dataclass(frozen=True)
class Beside:
    """A figure as measured, with what noise does to it: noise taken out, and roles shuffled; each as text with its interval,
    and empty where the space does not know it. study: the study's own, to set beside; none of them is a mark to pass."""

    name: str
    measured: str
    interval: str
    corrected: str
    corrected_interval: str
    shuffled: str
    study: str


def beside(summary: Summary) -> list[Beside]:
    """The figures that noise moves, of the space's own reading."""
    published = summary["published"]
    components = ", ".join(f"{n} ({model})" for model, n in published["components_for_70pct"].items())
    rows = [
        ("axis_pc1_cosine", "Cosine of axis and PC1", published["axis_pc1_cosine"]),
        ("components_for_70pct", "Components for 70% of the roles' variance", components),
        ("default_on_pc1", "Default's distance from the end of PC1", published["default_on_pc1"]),
        ("axis_share", "The axis' share of what roles differ by", ""),
        ("effective_dimension", "Dimensions that roles differ in", ""),
    ]
    comparisons = []
    for key, name, study in rows:
        # The last two exist without noise alone.
        has_corrected = f"{key}_corrected" in summary
        corrected = summary[f"{key}_corrected"] if has_corrected else summary.get(key)
        measured = summary[key] if has_corrected else None
        if measured is None and corrected is None:
            continue
        intervals = summary.get("corrected_interval") or {}
        spread = intervals.get(f"{key}_corrected") or intervals.get(key)
        raw_interval = summary.get("axis_pc1_interval") if key == "axis_pc1_cosine" else None
        chance = (summary.get("null") or {}).get(key)
        comparisons.append(
            Beside(
                name,
                _figure(key, measured),
                _interval(key, raw_interval),
                _figure(key, corrected),
                _interval(key, spread),
                f"{_figure(key, chance['mean'])}, in 95% under {_figure(key, chance['p95'])}" if chance else "",
                study,
            )
        )
    return comparisons


def _figure(key: str, value: float | None) -> str:
    if value is None:
        return ""
    if key == "axis_share":
        return f"{100 * value:.0f}%"
    if key in ("components_for_70pct", "effective_dimension"):
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.2f}"


def _interval(key: str, ends: Any) -> str:
    return f"{_figure(key, ends[0])} to {_figure(key, ends[1])}" if ends else ""


def wrapped(text: str, width: int, indent: int = 0, first: str = "") -> list[str]:
    """A text in lines; first: what stands in place of the first one's indent."""
    width = max(40, min(width, 110))
    return textwrap.wrap(text, width, initial_indent=first or " " * indent, subsequent_indent=" " * indent)


def lines(summary: Summary, width: int = 100) -> list[str]:
    """The three reliabilities of each reading, and then the figures that noise moves: the head of `show`."""
    text_lines = [
        f"{summary['model']}: layer {summary['layer']} of {summary['layers']}, {summary['n_roles']} roles",
        "",
    ]
    text_lines += ["How sure is this map?", *wrapped(INTRODUCTION, width)]
    for reading, worth in summary["readings"].items():
        source = read_from(reading, worth["n_responses"])
        text_lines += ["", *wrapped(f"{reading}: read from {source}; layer {worth['layer']}", width, 2)]
        for r in reliabilities(worth):
            text_lines += wrapped(r.meaning, width, 17, f"  {r.name:<6} {r.shown:<6}  ")
            if r.by_text is not None:
                text_lines += wrapped(f"With other instructions as well: {number(r.by_text)}.", width, 17)
            text_lines += wrapped(r.takes, width, 17)
    for text in (agreement(summary), nearest(summary)):
        if text:
            text_lines += ["", *wrapped(text, width)]
    reading_name = summary["reading"]
    title = f"Figures that noise moves, of the {reading_name} reading; the study's stand beside, as no mark to pass:"
    text_lines += ["", *wrapped(title, width)]
    for row in beside(summary):
        versions = [
            ("as measured", row.measured, row.interval),
            ("noise taken out", row.corrected, row.corrected_interval),
            ("roles shuffled", row.shuffled, ""),
            ("the study", row.study, ""),
        ]
        text_lines.append(f"  {row.name[0].lower()}{row.name[1:]}:")
        text = "; ".join(f"{version} {x}{f' (95%: {i})' if i else ''}" for version, x, i in versions if x)
        text_lines += wrapped(text, width, 4)
    return text_lines
