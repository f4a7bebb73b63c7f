"""How an effect of the axis is told beside those of as long steps along other directions, alike on every experiment's page.

It knows nothing of how an effect is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from personaspace.experiments.kit.conditions import PLAIN, SHUFFLED_AXIS
from personaspace.holding.controls import MANY, BesideControls
from personaspace.report.page import Page
from personaspace.stats.correlation import spearman

TITLE = "Beside other directions"
RULE = (
    "Along directions that are not the axis, each token is moved as far as the axis moves one: by a cap at each of its layers, "
    f"by steering at its own. An effect is called the axis' where it lies beyond the 95th percentile of {MANY} random "
    "directions or more, the way that it goes; of random directions themselves one in ten would, on either side. A shuffled "
    "axis leads from one half of the roles, drawn by lot, to the other."
)


def set_beside(
    axis: pd.DataFrame, aside: pd.DataFrame, measure: Callable[[pd.DataFrame], float]
) -> BesideControls | None:
    """A measure of what is done along the axis beside the same along each other direction, at the strengths and of the items
    that both were asked; plain replies belong to all of them. None where there is nothing to set it beside; a direction of
    which there is no figure is left out.

    axis: rows with `condition`, `alpha`, `cap` (empty where there is none) and `item`; aside: rows with `control` as well.
    """
    if aside.empty:
        return None
    plain, strengths = axis[axis.condition == PLAIN.name], aside[["alpha", "cap"]].drop_duplicates()
    done = axis[axis.condition != PLAIN.name].merge(strengths, on=["alpha", "cap"])
    effects = {
        int(number): measure(pd.concat([replies, plain[plain.item.isin(replies.item)]]))
        for number, replies in aside.groupby("control")
    }
    both = pd.concat([done, plain])
    random = tuple(value for number, value in effects.items() if number != SHUFFLED_AXIS and not math.isnan(value))
    return BesideControls(measure(both[both.item.isin(aside.item)]), random, effects.get(SHUFFLED_AXIS))


def rank_correlation(strength: pd.Series, is_so: pd.Series) -> float:
    """Of a strength with something being so; 0 where one of the two never varies, NaN of nothing."""
    return spearman(strength, is_so, constant=0.0 if len(strength) else math.nan)


def verdict(beside: BesideControls) -> str:
    """Whether an effect lies beyond the 95th percentile of its random directions, in a word or two."""
    if len(beside.random) < MANY:
        return "not known"
    return "beyond" if beside.is_the_axis else "not beyond"


def tell_beside(
    page: Page, effects: Mapping[str, BesideControls], measure: str, text: str = "", spec: str = "+.2f"
) -> None:
    """Adds a key figure for each effect, and a section with a row for each.

    effects: by what is done to the model; measure: what they are of, in a few words ("taken back over the last half"); text:
    what is to be said of how that was measured; spec: how they are written.
    """
    rows = []
    for name, beside in ((n, b) for n, b in effects.items() if b.random):
        n = len(beside.random)
        page.figure(f"{name}, beside {n} random directions", verdict(beside), f"{measure}: {beside.effect:{spec}}")
        rows.append([name, f"{beside.effect:{spec}}", beside.told(spec), "yes" if beside.is_the_axis else "no"])
    if rows:
        head = ["", measure, "beside it", "the axis' own"]
        page.section(TITLE, f"{text} {RULE}".strip(), head=head, rows=rows)


def beside_in_words(
    effects: Mapping[str, BesideControls], measure: str, names: Sequence[str], spec: str = "+.2f"
) -> str:
    """The headline's sentences of them. names: all that is done to the model; of what has no random direction beside it nothing
    is claimed. Nothing at all where nothing is done."""
    sentences = [f"Under “{n}”, {measure}: {b.effect:{spec}}; {b.told(spec)}." for n, b in effects.items() if b.random]
    if alone := [name for name in names if name not in effects or not effects[name].random]:
        sentences.append(
            f"Beside {', '.join(alone)} no random direction was set: nothing is claimed of the axis there."
        )
    return " ".join(sentences)
