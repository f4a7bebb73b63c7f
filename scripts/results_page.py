"""What was measured as one page of Markdown: every figure with its interval, the command that makes it again, and the study's.

It runs nothing: it is given what experiments and `show --json` wrote, and the study's figures (`study.json`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personaspace.holding.controls import BesideControls
from personaspace.report.page import EXACT
from personaspace.stats.intervals import Estimate, share

STUDY = Path(__file__).with_name("study.json")
MAP, OTHER_MAP = "map", "other-map"
NOT_MEASURED = "not measured"
AGREES, DIFFERS, UNCLEAR = "agrees", "does not", "can't be told with so small a model"
HEAD = ("figure", "value", "95% interval", "the study")
CORRECTED = "noise taken out"


@dataclass(frozen=True)
class Measured:
    """One measurement: its title; the command of a user who makes it again; key: the rows of `HEAD`'s table, `name`, `note`,
    `value`, `interval` and `study`; figures: all of its numbers, by name."""

    title: str
    command: str
    key: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Any]
    headline: str = ""
    seconds: float | None = None


def row(name: str, value: str, interval: str = "", study: str = "", note: str = "") -> dict[str, str]:
    """A key row as experiments write theirs."""
    return {"name": name, "value": value, "interval": interval, "study": study, "note": note}


def of_estimate(name: str, e: Estimate, spec: str, study: str = "", note: str = "") -> dict[str, str]:
    """The key row of an estimate."""
    return row(name, f"{e.value:{spec}}", e.ends(spec), study, note)


def map_figures(shown: Mapping[str, Any]) -> dict[str, Estimate]:
    """The figures of `show --json` that have an interval, by name, and `ends_in_order`: how many pairs of the study's two ends
    lie in its order; the interval's ends are the pairs of which that is sure, and those of which it may be so, by the roles'
    own intervals."""
    corrected = shown["corrected_interval"] or {}
    known = {
        name: Estimate(shown[name], *ends, shown["n_roles"])
        for name, ends in corrected.items()
        if name != "spectrum_corrected" and shown.get(name) is not None
    }
    if spectrum := corrected.get("spectrum_corrected"):
        known["pc1_share_corrected"] = Estimate(shown["spectrum_corrected"][0], *spectrum, shown["n_roles"])
    if shown["axis_pc1_interval"]:
        known["axis_pc1_cosine"] = Estimate(shown["axis_pc1_cosine"], *shown["axis_pc1_interval"], shown["n_roles"])
    places = {r["name"]: (r["projection"], *r["interval"]) for r in shown["roles"] if r.get("interval")}
    near, far = (
        [places[name] for name in shown["published"][end] if name in places] for end in ("assistant_end", "far_end")
    )
    if pairs := [(above, below) for above in near for below in far]:
        shares = [sum(above[i] > below[j] for above, below in pairs) / len(pairs) for i, j in ((0, 0), (1, 2), (2, 1))]
        known["ends_in_order"] = Estimate(*shares, len(pairs))
    return known


def of_map(shown: Mapping[str, Any], command: str, title: str) -> Measured:
    """A map's figures as `show --json` tells them, each with its interval or its reliability."""
    known, published, null = map_figures(shown), shown["published"], shown["null"] or {}
    components = "; ".join(str(n) for n in published["components_for_70pct"].values())
    key = []
    for name in ("axis", "order", "map"):
        value, ends = shown["reliability"][name], shown["reliability_interval"][name]
        if value is None:
            continue
        by_instruction = (shown["reliability_by_instruction"] or {}).get(name)
        note = "" if by_instruction is None else f"with other instructions as well {by_instruction:.2f}"
        interval = f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "is a reliability"
        key.append(row(f"reliability of the {name}", f"{value:.3f}", interval, note=note))
    for name, label, spec, study in (
        ("axis_pc1_cosine", "cosine of axis and PC1, as measured", ".2f", published["axis_pc1_cosine"]),
        ("axis_pc1_cosine_corrected", f"cosine of axis and PC1, {CORRECTED}", ".2f", published["axis_pc1_cosine"]),
        ("components_for_70pct_corrected", f"components for 70% of the variance, {CORRECTED}", ".1f", components),
        ("pc1_share_corrected", f"PC1's share of the roles' variance, {CORRECTED}", ".0%", ""),
        (
            "default_on_pc1_corrected",
            f"default's distance from the end of PC1, {CORRECTED}",
            ".2f",
            published["default_on_pc1"],
        ),
        ("axis_share", f"the axis' share of what roles differ by, {CORRECTED}", ".0%", ""),
        ("effective_dimension", f"dimensions that roles differ in, {CORRECTED}", ".1f", ""),
        ("ends_in_order", "pairs of the study's two ends that lie in its order", ".0%", "every one"),
    ):
        if name not in known:
            continue
        by_chance = null.get(name.removesuffix("_corrected"))
        note = f"roles shuffled {by_chance['mean']:{spec}}" if by_chance else ""
        key.append(of_estimate(label, known[name], spec, study, note))
    if shown["nearest"]:
        n, own, chance = (shown["nearest"][k] for k in ("n", "own", "chance"))
        hits = share([k < round(own * n) for k in range(n)])
        label = f"replies with their own role among the nearest {shown['nearest']['k']}"
        key.append(of_estimate(label, hits, ".0%", note=f"of {n}; by chance {chance:.0%}"))
    if agreed := shown["readings_agree"]:
        order = Estimate(agreed["order"], *agreed["interval"], shown["n_roles"])
        key.append(of_estimate("correlation of the orders that prompts and replies tell", order, ".2f", note=CORRECTED))
    for reading, of_reading in shown["readings"].items():
        key.append(row({"prompt": "prompts", "reply": "replies"}[reading], f"{of_reading['n_responses']:,}", EXACT))
    return Measured(title, command, key, {name: vars(e) for name, e in known.items()})


def of_pair(pair: Mapping[str, Any], command: str) -> Measured:
    """Two spaces set side by side, from a pair of `compare --json`."""
    labels = {"pc1": "PC1 loadings", "axis": "places on the axis", "ranking": "the ranking"}
    studies = {"pc1": "above 0.92 between any two of its models"}
    key = [
        of_estimate(label, estimate(pair[k]), ".2f", studies.get(k, ""), f"correlation over {pair['shared']} roles")
        for k, label in labels.items()
    ]
    return Measured(f"{pair['first']} beside {pair['second']}", command, key, pair)


def estimate(values: Mapping[str, Any]) -> Estimate:
    """An estimate from its JSON, in which NaN is null."""
    numbers = {k: math.nan if values[k] is None else values[k] for k in ("value", "low", "high")}
    return Estimate(**numbers, n=values.get("n", 1), missing=values.get("missing", 0))


def figure_of(measured: Mapping[str, Measured], path: Sequence[str] | None) -> Estimate | None:
    """The figure at a path of `study.json`, as `values_of` finds it."""
    values = values_of(measured, path)
    return None if values is None else estimate(values)


def values_of(measured: Mapping[str, Measured], path: Sequence[str] | None) -> Any:
    """What lies at a path of `study.json`: a measurement's name, then its figure's; None where that was not measured, or its
    figure is not known. Raises `KeyError` where the measurement has no such figure."""
    if path is None or path[0] not in measured:
        return None
    value: Any = measured[path[0]].figures
    for k, step in enumerate(path[1:], 1):
        # A map tells no figure that it does not know; what an experiment has is always there.
        if path[0] in (MAP, OTHER_MAP) and step not in value:
            return None
        if step not in value:
            raise KeyError(f"{' / '.join(path[: k + 1])} of study.json: {path[0]} has {', '.join(value)}")
        value = value[step]
        if value is None:
            return None
    return value


def verdict(claim: Mapping[str, Any], e: Estimate, measured: Mapping[str, Measured]) -> str:
    """Whether a figure agrees with the claim, by its interval (the rules are told in `study.json`)."""
    if "cannot" in claim:
        return f"can't be told: {claim['cannot']}"
    note = f" ({claim['note']})" if "note" in claim else ""
    needed = [(figure_of(measured, path), least) for path, least in claim.get("needs", ())]
    if math.isnan(e.low) or any(other is None or not other.low > least for other, least in needed):
        return UNCLEAR + note
    if "beside" in claim:
        beside = values_of(measured, claim["beside"])
        if beside is None or not BesideControls(**beside).is_the_axis:
            return UNCLEAR + note

    def bound(value: Any, end: str) -> float:
        if not isinstance(value, list):
            return float(value)
        other = figure_of(measured, value)
        return math.nan if other is None else float(getattr(other, end))

    least, most = -math.inf, math.inf
    fails_under, fails_over = -math.inf, math.inf
    if "above" in claim:
        least, fails_under = bound(claim["above"], "high"), bound(claim["above"], "low")
    elif "below" in claim:
        most, fails_over = bound(claim["below"], "low"), bound(claim["below"], "high")
    elif "between" in claim:
        least, most = fails_under, fails_over = claim["between"]
    else:
        # About so much, and more than nothing.
        figure = claim["near"]
        agrees = 0 < e.low <= figure <= e.high
        return (AGREES if agrees else DIFFERS if e.high < figure else UNCLEAR) + note
    fails_under = claim.get("fails_below", fails_under)
    if e.low > least and e.high < most:
        return AGREES + note
    return (DIFFERS if e.high < fails_under or e.low > fails_over else UNCLEAR) + note


def written(e: Estimate | None, spec: str) -> str:
    """An estimate in a cell; `points` is a share's difference in percentage points."""
    if e is None:
        return NOT_MEASURED
    return f"{e.in_points():+.0f} points" if spec == "points" else f"{e:{spec}}"


def beside_study(measured: Mapping[str, Measured], other_name: str) -> str:
    """The table of the study's figures beside ours. other_name: of the other model whose base was mapped."""
    claims = json.loads(STUDY.read_text(encoding="utf-8"))["claims"]
    rows = []
    for claim in claims:
        spec = claim.get("spec", "")
        ours, other = figure_of(measured, claim["ours"]), figure_of(measured, claim["other"])
        if ours is not None:
            agreement, by = verdict(claim, ours, measured), claim["ours"][0]
        elif other is not None:
            agreement, by = verdict(claim, other, measured), claim["other"][0]
        else:
            agreement, by = NOT_MEASURED, ""
        command = f"`{measured[by].command}`" if by else "–"
        theirs = f"{claim['figure']} ({claim['model']}; {claim['part']})"
        beside = written(other, spec)
        if ours is not None and other is not None and "cannot" not in claim:
            beside += f": {verdict(claim, other, measured)}"
        rows.append([claim["claim"], theirs, written(ours, spec), command, beside, agreement])
    head = ["the claim", "the study", "smollm2", "its command", other_name, "does smollm2 agree"]
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def page(date: str, model: str, other: str, measured: Mapping[str, Measured], pictures: Sequence[str]) -> str:
    """The whole page. other: the name of the other model's base, empty where there is none; pictures: the measurements that
    have a page and a picture beside this one."""
    commands = [f"`{measured[name].command}`" for name in ("base-model-other", OTHER_MAP) if name in measured]
    other_commands = f" {other}'s are of {' and '.join(commands)}." if commands else ""
    parts = [
        f"# {model}, {date}",
        "Every experiment at its small setting, by `make experiments`; each has the command that makes it again. Intervals are "
        f"95%; “{EXACT}” stands for what was counted. The pages (`.html`) have every figure to point at, the `.json` every "
        "number.",
        "## The study's published figures beside ours",
        "What agrees is told by the interval alone: “agrees” and “does not” where the whole of it lies on one side of what the "
        f"study found (`scripts/study.json` has each rule), and else “{UNCLEAR}”. The study's models are two hundred times as "
        f"large.{other_commands}",
        beside_study(measured, other or "another model"),
    ]
    for name, each in measured.items():
        took = "" if each.seconds is None else f" Took {each.seconds / 60:.1f} minutes."
        rows = [
            [", ".join(t for t in (k["name"], k["note"]) if t), k["value"], k["interval"] or "none", k["study"] or "–"]
            for k in each.key
        ]
        parts += [f"## {name}: {each.title}", f"    {each.command}"]
        parts += [each.headline + took] if each.headline else []
        parts.append(table(HEAD, rows))
        if name in pictures:
            parts += [f"![{each.title}]({name}.png)", f"[The page]({name}.html)"]
    return "\n\n".join(parts) + "\n"
