"""What a notebook shows: small tables that say how sure they are, and in which every text is text."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import personaspace as ps
from personaspace.api import Trajectory
from personaspace.holding.monitor import TurnReading
from personaspace.report import tables
from personaspace.space import Location, PersonaSpace
from test_compare import PLACES, space


class Cells(HTMLParser):
    """A table's texts by element, and whatever elements there are."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.texts.append("")

    def handle_data(self, data):
        self.texts[-1] += data

    def of(self, tag: str) -> list[str]:
        return [text for element, text in zip(self.elements, self.texts, strict=True) if element == tag]


ROOT = Path(__file__).parent.parent
ELEMENTS = {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=4, max_size=4))
def test_whatever_a_text_is_it_is_shown_as_that_text_and_makes_no_element(texts):
    caption, head, cell, note = texts
    shown = Cells(tables.table(caption, [head], [[cell]], [note]))
    assert set(shown.elements) <= ELEMENTS
    # A parser of HTML takes carriage returns for line feeds, and some control characters for others.
    plain = [t for t in texts if t.isprintable()]
    assert all(t in shown.texts for t in plain if t or t is not note)


def test_a_spaces_table_has_its_reliabilities_as_they_are_printed():
    shown = Cells(PersonaSpace.load("smollm2")._repr_html_())
    cells = shown.of("td")
    assert [cells[k : k + 3] for k in range(0, 18, 6)] == [
        ["prompt", "axis", "0.995"],
        ["prompt", "order", "0.96"],
        ["prompt", "map", "0.89"],
    ]
    assert any("bard" in text for text in shown.of("p"))


@pytest.fixture(scope="module")
def spaces() -> dict[str, PersonaSpace]:
    """Two of like characters, one whose order is known and one whose is not."""
    made = {"sure": space("sure", PLACES), "unsure": space("unsure", PLACES, turn=1)}
    for name, order in (("sure", 0.9), ("unsure", 0.3)):
        made[name].tensors["order_split_half"] = torch.full((3,), order / (2 - order))
    return made


def test_no_ends_are_named_of_an_order_that_is_not_known(spaces):
    for name, sure in (("sure", True), ("unsure", False)):
        notes = Cells(spaces[name]._repr_html_()).of("p")
        assert any(text.startswith("Most Assistant-like") for text in notes) == sure
        assert any("order is not known" in text for text in notes) != sure


def test_a_comparisons_table_names_who_moved_only_where_both_orders_are_known(spaces):
    (pair,) = ps.compare(spaces)
    doubtful = Cells(pair._repr_html_())
    assert doubtful.of("caption") == ["sure and unsure: 60 roles"]
    assert f"{pair.axis}" in doubtful.of("td")
    assert doubtful.of("p") == ["The order in unsure is not known, and so not who moved."]
    both_known = replace(pair, reliability=(pair.reliability[0], pair.reliability[0]))
    assert pair.moved[0][0] in Cells(both_known._repr_html_()).of("p")[0]


def test_a_drift_that_a_space_does_not_know_is_said_to_be_not_known():
    shown = Cells(Location(-3.21, None, [("<b>ghost</b>", 0.5)])._repr_html_())
    assert shown.of("td") == ["-3.2", "not known", "<b>ghost</b> 0.50"]


def test_a_talks_table_has_a_row_a_turn_with_its_alert_and_its_problem():
    quiet = TurnReading(1, 9, 2.0, -0.5, [("clerk", 0.4)], False, None, ())
    loud = TurnReading(3, 8, -9.0, 3.5, [("ghost", 0.6)], True, None, ())
    shown = Cells(Trajectory("a <talk>", [quiet, loud], "cut & short")._repr_html_())
    rows = shown.of("td")
    assert rows[:6] == ["1", "9", "+2.0", "-0.50", "clerk 0.40", ""]
    assert rows[6:] == ["3", "8", "-9.0", "+3.50", "ghost 0.60", "alert"]
    assert shown.of("caption") == ["a <talk>"]
    assert "cut & short" in shown.of("p")
    assert Cells(loud._repr_html_()).of("td") == rows[6:]


@pytest.mark.long
def test_the_notebook_runs_from_top_to_bottom_and_shows_its_tables(smollm2, monkeypatch, tmp_path):
    """As `python docs/notebooks/first_map.py` does, with the model that is loaded already."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("first_map", ROOT / "docs" / "notebooks" / "first_map.py")
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    outputs, names = notebook.app.run(defs={"engine": smollm2})
    captions = [Cells(o._repr_html_()).of("caption") for o in outputs if hasattr(o, "_repr_html_")]
    captions = [caption for (caption,) in (c for c in captions if c)]
    assert captions == [
        "smollm2: layer 16 of 30, 275 roles",
        "A reply on the axis",
        "A reply on the axis",
        "a talk that wanders off",
        f"smollm2: layer {names['small'].layer} of 30, 12 roles",
        "12 roles and 275 roles: 12 roles",
    ]
