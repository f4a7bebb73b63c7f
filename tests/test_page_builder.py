"""Pages in the making: what is added stands there in order, and charts draw what they are given and nothing else."""

from __future__ import annotations

import math
import re

from personaspace.report.charts import across, band, beside, chart, stacked, wrapped
from personaspace.report.page import EXACT, Page
from personaspace.stats.intervals import Estimate

LOW, HIGH = Estimate(0.2, 0.1, 0.3, 20), Estimate(0.8, 0.7, 0.9, 20)


def test_a_key_figure_of_an_estimate_has_its_interval_before_its_note_and_the_studys_behind_it():
    page = Page("A title", "a lead")
    page.figure("share", LOW, "of replies", ".2f", study="0.53 to 0.77")
    page.figure("change, points", LOW.in_points(), spec="+.0f")
    page.figure("drift", Estimate(0.5, math.nan, math.nan, 2))
    page.figure("cosine", Estimate(math.nan, math.nan, math.nan, 2))
    page.figure("replies", "12", "none judged", interval=EXACT)
    assert [(f.value, f.interval, f.beside) for f in page.key] == [
        ("0.20", "0.10 to 0.30", "95%: 0.10 to 0.30; of replies; the study: 0.53 to 0.77"),
        ("+20", "+10 to +30", "95%: +10 to +30"),
        ("+0.50", "too few for an interval", "too few for an interval"),
        ("not known", "too few for an interval", "too few for an interval"),
        ("12", "exact", "exact; none judged"),
    ]
    assert [f.estimate for f in page.key][::4] == [LOW, None]


def test_a_written_page_has_its_sections_in_order_and_no_markup_of_theirs(tmp_path):
    page = Page("A title", "a <b>lead</b>")
    page.section("First", "prose & more", chart([{"type": "scatter", "y": [1, 2]}], "turn", "place", 300))
    page.section("Second", head=["role", "place"], rows=[["<i>ghost</i>", "+1.00"]])
    text = page.write(tmp_path / "page.html", said="It was found.").read_text()
    head, body = text.split("<main>")[0], text.split("<main>")[1].split("<footer>")[0]
    assert "a &lt;b&gt;lead&lt;/b&gt;" in head
    assert "It was found." in head
    assert body.index("First") < body.index('style="height: 300px"') < body.index("Second") < body.index("+1.00")
    assert "<i>ghost" not in body
    assert body.count('class="plot"') == 1


def test_a_column_without_a_name_has_a_plain_cell_above_it_and_no_empty_heading(tmp_path):
    page = Page("A title", "a lead")
    page.section("First", head=["", "place"], rows=[["ghost", "+1.00"]])
    (head,) = re.findall(r"<thead>.*?</thead>", page.write(tmp_path / "page.html").read_text())
    assert head == "<thead><tr><td></td><th>place</th></tr></thead>"


def test_a_cell_of_prose_is_told_from_figures_so_that_a_narrow_window_leaves_it_room(tmp_path):
    page = Page("A title", "a lead")
    page.section("First", head=["place", "in words"], rows=[["+1.00", "so many words " * 10]])
    cells = re.findall(r"<td( class=\"prose\")?>", page.write(tmp_path / "page.html").read_text())
    assert cells == ["", ' class="prose"']


def test_estimates_side_by_side_leave_out_what_is_not_there():
    drawn = beside(["plain", "capped"], {"axis": [LOW, HIGH], "random": [None, LOW]}, "share", percent=True)
    axis, random = drawn.data
    assert (axis["x"], axis["y"]) == (["plain", "capped"], [0.2, 0.8])
    assert (random["x"], random["y"]) == (["capped"], [0.2])
    assert axis["marker"]["color"] != random["marker"]["color"]
    assert axis["text"][1] == "axis, capped: 80% (70–90)"
    assert drawn.layout["yaxis"]["tickformat"] == ".0%"


def test_drawn_sideways_names_run_from_the_top_and_intervals_lie_flat():
    (trace,) = (drawn := beside(["one", "two"], {"": [LOW, HIGH]}, "cosine", sideways=True)).data
    assert (trace["y"], trace["x"], trace["orientation"]) == (["one", "two"], [0.2, 0.8], "h")
    assert "error_x" in trace
    assert drawn.layout["yaxis"]["autorange"] == "reversed"


def test_what_runs_across_a_chart_runs_from_end_to_end():
    level, upright, stripe = across(y=0.5), across(x=3), band(x=(-1, 1))
    assert (level["xref"], level["x0"], level["x1"], level["y0"], level["y1"]) == ("paper", 0, 1, 0.5, 0.5)
    assert (upright["yref"], upright["y0"], upright["y1"], upright["x0"]) == ("paper", 0, 1, 3)
    assert (stripe["x0"], stripe["x1"], stripe["yref"], stripe["layer"]) == (-1, 1, "paper", "below")


def test_stacked_shares_add_up_and_what_is_left_over_is_hatched():
    shares = {"plain": {"a": LOW, "rest": HIGH}}
    drawn = stacked(["plain"], ["a", "rest"], shares, {("plain", "a"): "<br>an example"}, "condition", 480)
    assert sum(trace["y"][0] for trace in drawn.data) == 1
    assert drawn.data[0]["text"] == ["<b>a</b>, plain: 20% (10–30)<br>an example"]
    assert ["pattern" in trace["marker"] for trace in drawn.data] == [False, True]


def test_a_word_longer_than_a_line_of_a_hover_begins_no_empty_line():
    assert wrapped("x" * 30 + " and more", width=20) == "x" * 30 + "<br>and more"
