"""What a sweep of caps found, as tables, as a page and in sentences; it tries nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from personaspace.holding.controls import MANY, RANDOM, farthest
from personaspace.holding.outcomes import MAX_COST, MAX_TOUCHED, CapOutcome, percent
from personaspace.report.page import FAR, NEAR, SOFT, Block, write_figures
from personaspace.space import PersonaSpace


def table(outcomes: Sequence[CapOutcome]) -> tuple[list[str], list[list[str]]]:
    """What each cap does, for people: the head and the rows, the front first."""
    head = [
        "cap",
        "of the way",
        "perplexity",
        "95%",
        "default's touched",
        "in role",
        "off the axis",
        "solved",
        "within",
        "front",
    ]
    rows = [
        [
            o.name,
            f"{o.way:.2f} ± {o.way_error:.2f}" if o.name != "none" else "0",
            f"× {o.cost:.3f}",
            "" if o.cost_interval is None else f"{o.cost_interval[0]:.3f}–{o.cost_interval[1]:.3f}",
            percent(o.touched),
            "" if o.adherence is None else percent(o.adherence),
            "" if o.off_axis is None else f"{o.off_axis:+.3f}",
            "" if o.capability is None else percent(o.capability),
            "yes" if o.name != "none" and o.beyond <= 1 else "",
            "yes" if o.front else "",
        ]
        for o in sorted(outcomes, key=lambda o: (not o.front, o.cost))
    ]
    filled_columns = [k for k in range(len(head)) if any(row[k] for row in rows)]
    return [head[k] for k in filled_columns], [[row[k] for k in filled_columns] for row in rows]


def write_tradeoff(path: str | Path, space: PersonaSpace, outcomes: Sequence[CapOutcome]) -> Path:
    """Draws the trade-off as an HTML page, the Pareto front as a line, the recommended cap marked."""
    capped = space.caps["capped"]
    front = sorted((o for o in outcomes if o.front), key=lambda o: o.cost)

    def dots(shown: Sequence[CapOutcome], name: str, colour: str, **options: Any) -> dict[str, Any]:
        hover_texts = [f"{o.name}<br>{o.way:.2f} of the way, {o.price()}" for o in shown]
        intervals = [o.cost_interval or (o.cost, o.cost) for o in shown]
        return {
            "type": "scatter",
            "name": name,
            "x": [o.cost for o in shown],
            "y": [o.way for o in shown],
            "text": hover_texts,
            "hoverinfo": "text",
            "mode": "markers",
            "marker": {"color": colour, "size": 9},
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [high - o.cost for o, (_, high) in zip(shown, intervals, strict=True)],
                "arrayminus": [o.cost - low for o, (low, _) in zip(shown, intervals, strict=True)],
                "color": colour,
                "thickness": 1,
                "width": 0,
            },
            **options,
        }

    best = [o for o in outcomes if o.name == capped["is"]]
    data = [
        dots([o for o in outcomes if not o.front], "other caps", SOFT),
        dots(front, "the front", NEAR, mode="lines+markers", line={"color": NEAR, "shape": "hv"}),
        dots(best, "taken", FAR, marker={"color": FAR, "size": 15, "symbol": "star"}),
    ]
    layout = {
        "xaxis": {"title": {"text": "factor on the perplexity of default replies"}},
        "yaxis": {"title": {"text": "of the way from role replies to the default's"}},
        "shapes": [
            {
                "type": "line",
                "x0": MAX_COST,
                "x1": MAX_COST,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": SOFT, "dash": "dot"},
            }
        ],
    }
    head, rows = table(outcomes)
    blocks = [
        Block(
            "What each cap saves, and what it costs",
            "Up is better, left is better; bars are 95% intervals of the cost. The dotted line is the cost that a "
            "recommended cap may have at the upper end of its bar; besides, it may touch at most "
            f"{percent(MAX_TOUCHED)} of the default's own tokens.",
            {"data": data, "layout": layout},
            520,
        ),
        Block(
            "All of them",
            "Of the way: with its standard error over prompts. Perplexity: the factor on that of held-out default "
            "replies, with its interval by a paired bootstrap over their questions. Default's touched: the share of "
            "their tokens that it changes. In role: what the judge says of capped role replies. Off the axis: how much "
            "their cosine with their own role changes, what lies along the axis left out. Within: both bounds on a "
            "recommended cap are kept.",
            head=head,
            rows=rows,
        ),
    ]
    if controls := capped["why"].get("controls"):
        head, rows = controls_table(controls)
        blocks.insert(
            1, Block("Beside other directions", f"{compared(controls)} {CONTROLS_READ}", head=head, rows=rows)
        )
    lead = f"{capped['is']} is taken as “capped”: {capped['why']['because']}. {again(capped)}"
    return write_figures(path, f"Capping {space.meta['model']['id']}", lead, blocks)


def again(capped: Mapping[str, Any]) -> str:
    """What the cap that was taken does on prompts that it was not ranked by (the choice among the best few went by
    them, too), as a sentence."""
    retrial = capped["why"].get("again")
    if retrial is None:
        return ""
    # Older sweeps kept no interval.
    low_high = retrial.get("cost_interval")
    inside = f" ({low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""
    return (
        f"On {capped['why']['again_prompts']} fresh prompts it goes {retrial['way']:.2f} ± {retrial['way_error']:.2f} "
        f"of the way, at × {retrial['cost']:.3f}{inside} perplexity, "
        f"{percent(retrial['touched'])} of the default's tokens touched."
    )


CONTROLS_READ = (
    "Each control moves every token of a reply, at each of the cap's layers, as far as the cap moves one in the mean; "
    "directions other than the axis are taken without what lies along it. With standard errors over prompts."
)


def controls_table(controls: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The cap that was taken beside its controls, as `sweep` noted them: the head and the rows."""

    def figure(value: float | None, error: float | None, digits: int) -> str:
        return "" if value is None else f"{value:+.{digits}f} ± {error or 0:.{digits}f}"

    rows = [
        [
            e["name"],
            figure(e["way"], e["way_error"], 2),
            figure(e["off_axis"], e["off_axis_error"], 3),
            "" if e["adherence"] is None else percent(e["adherence"]),
        ]
        for e in controls["effects"]
    ]
    return ["displaced along", "of the way", "off the axis", "in role"], rows


def compared(controls: Mapping[str, Any]) -> str:
    """What the cap that was taken does beside its controls, in a sentence."""
    cap, *others = controls["effects"]
    if not any(controls["displacement"]):
        return (
            f"On {controls['prompts']} role prompts {cap['name']} moves no token, so that there is nothing to compare."
        )
    random = [e for e in others if e["name"].startswith(RANDOM)]
    ways = [e["way"] for e in random]
    # Of fewer than twenty the 95th percentile is not known: then it is the greatest.
    percentile_known = len(ways) >= MANY
    limit = farthest(ways)
    bound = f"the 95th percentile of {len(ways)}" if percentile_known else f"all {len(ways)}"
    named_controls = [e for e in others if e not in random]
    named_figures = "".join(f", {e['name']} {e['way']:+.2f}" for e in named_controls)
    parts = [
        f"On {controls['prompts']} role prompts {cap['name']} moves replies {cap['way']:+.2f} of the way, random "
        f"directions displaced as far per token {min(ways):+.2f} to {max(ways):+.2f}{named_figures}: "
        f"{'beyond' if cap['way'] > limit else 'not beyond'} {bound} random ones."
    ]
    if cap["off_axis"] is not None:
        off_axis = [e["off_axis"] for e in random]
        named_figures = "".join(f", {e['name']} {e['off_axis']:+.3f}" for e in named_controls)
        parts.append(
            f"Off the axis their cosine with their own role changes by {cap['off_axis']:+.3f}, under random directions "
            f"by {min(off_axis):+.3f} to {max(off_axis):+.3f}{named_figures}."
        )
    return " ".join(parts)
