"""Figures that a reader can check: each has its command, its interval and the study's figure; so in README and docs."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import re
import sys
from pathlib import Path

import pytest

from personaspace.space import PersonaSpace
from personaspace.stats.intervals import Estimate

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(
        page
        for folder in ("explanation", "howto", "tutorial")
        for page in sorted((ROOT / "docs" / folder).glob("*.md"))
    ),
]
FIGURE = re.compile(r"×\s?\d|\d\s?×|\d\s?%|(?<![\w.])[+−-]?\d+\.\d{2,}|R²")
"""In a table's cell: a factor, a share, a number of two decimals or more."""
BESIDE = re.compile(
    r"\(\W*\d[\d.,]*%?\W{0,3}(?:to|–)\W{0,3}\d|, \d+ to \d|±|95%|intervals|reliabilit|exact|counted|one run|least and the most"
)
"""An interval, or what stands for it: a reliability, a count, or that it is of one run."""
COMMAND = re.compile(r"personaspace [a-z]|\bmake [a-z]|python scripts/|`tests/|results/")
GENERATED = ("commands.md", "licences.md")
LACKING = {
    ("judges.md", "How they go about it, and what else was tried"): "command and interval",
    ("judges.md", "Mending the rules once more, which brought nothing"): "command",
    ("judges.md", "Before: the rules by expressions alone, on the same sets"): "command",
}
"""Sections whose tables have figures without either: what was measured once by code that isn't kept, and what is measured anew
with the next release. None may be added."""
RESULTS = sorted((ROOT / "docs" / "results").glob("20*"))[-1]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


results_page = script("results_page")
experiments = script("experiments")


def an_experiment(figures, key=()):
    return results_page.Measured("A title", "personaspace experiment drift smollm2 --out runs/d", key, figures)


def estimate(low, high):
    return Estimate((low + high) / 2, low, high, 20)


def of(claim, low, high, **measured):
    return results_page.verdict(claim, estimate(low, high), measured)


AGREES, DIFFERS, UNCLEAR = results_page.AGREES, results_page.DIFFERS, results_page.UNCLEAR


def test_a_claim_is_agreed_with_only_where_the_whole_interval_does():
    for claim, agreeing, differing, between in (
        ({"above": 0.71}, (0.72, 0.8), (0.5, 0.6), (0.6, 0.8)),
        ({"below": 0.03}, (0.0, 0.02), (0.07, 0.25), (0.01, 0.05)),
        ({"between": [4, 19]}, (5.8, 6.6), (20, 22), (3, 5)),
        ({"near": 0.6}, (0.4, 0.8), (-0.1, 0.4), (-0.1, 0.7)),
        ({"above": -0.05, "fails_below": 0}, (-0.03, 0.02), (-0.09, -0.01), (-0.06, 0.03)),
    ):
        assert [of(claim, *ends) for ends in (agreeing, differing, between)] == [AGREES, DIFFERS, UNCLEAR], claim
    assert of({"between": [4, 19]}, 1, 3) == DIFFERS


def test_nothing_is_agreed_with_without_an_interval_or_without_what_a_claim_needs():
    assert of({"above": 0}, math.nan, math.nan) == UNCLEAR
    needing = {"above": 0, "needs": [[["drift", "difference"], 0]], "note": "a stand-in"}
    told, untold = (an_experiment({"difference": vars(estimate(*ends))}) for ends in ((0.1, 0.2), (-0.1, 0.2)))
    assert of(needing, 0.1, 0.2, drift=told) == f"{AGREES} (a stand-in)"
    assert of(needing, 0.1, 0.2, drift=untold) == of(needing, 0.1, 0.2) == f"{UNCLEAR} (a stand-in)"
    assert of({"above": 0, "cannot": "no base model"}, 1, 2) == "can't be told: no base model"


def test_a_bound_that_is_another_figure_is_passed_by_its_whole_interval():
    plain = an_experiment({"plain": vars(estimate(0.8, 1.4))})
    claim = {"below": ["drift", "plain"]}
    assert [of(claim, *ends, drift=plain) for ends in ((0.1, 0.7), (1.5, 1.6), (0.4, 0.9))] == [
        AGREES,
        DIFFERS,
        UNCLEAR,
    ]


def test_an_effect_that_random_directions_have_as_well_agrees_with_nothing():
    claim = {"above": 0, "beside": ["drift", "beside"]}
    for random, agreed in (([0.01 * k for k in range(20)], AGREES), ([0.1 * k for k in range(20)], UNCLEAR)):
        figures = {"beside": {"effect": 0.5, "random": random, "shuffled": 0.0}}
        assert of(claim, 0.4, 0.6, drift=an_experiment(figures)) == agreed


def test_every_claim_of_the_study_names_figures_that_experiments_write():
    measured = {results_page.MAP: results_page.of_map(PersonaSpace.load("smollm2").summary(), "show", "The map")}
    for file in RESULTS.glob("*.json"):
        measured[file.stem] = an_experiment(json.loads(file.read_text(encoding="utf-8"))["figures"])
    claims = json.loads(results_page.STUDY.read_text(encoding="utf-8"))["claims"]
    for claim in claims:
        assert all(claim[name] for name in ("claim", "model", "figure", "part")), claim
        for path in (claim["ours"], claim["other"], *(path for path, _ in claim.get("needs", ()))):
            if path and path[0] != results_page.OTHER_MAP:
                assert results_page.figure_of(measured, path), path
        assert "beside" not in claim or results_page.values_of(measured, claim["beside"])["random"], claim
    lines = results_page.beside_study(measured, "another").splitlines()[2:]
    assert len(lines) == len(claims)
    assert sum(line.split(" | ")[2] == results_page.NOT_MEASURED for line in lines) == sum(
        not c["ours"] for c in claims
    )
    with pytest.raises(KeyError, match="drift / apart / nothing of study"):
        results_page.figure_of(measured, ["drift", "apart", "nothing"])


def test_the_page_has_each_measurements_command_and_each_figures_interval():
    key = [
        results_page.of_estimate("drift", estimate(0.3, 1.3), "+.2f", "it drifts", "deviations"),
        results_page.row("replies", "72", results_page.EXACT),
        results_page.row("same ends", "60%"),
    ]
    measured = {"drift": an_experiment(json.loads((RESULTS / "drift.json").read_text("utf-8"))["figures"], key)}
    text = results_page.page("2026-11-27", "smollm2", "", measured, ["drift"])
    assert (
        "    personaspace experiment drift smollm2 --out runs/d\n\n| figure | value | 95% interval | the study |"
        in text
    )
    assert "| drift, deviations | +0.80 | +0.30 to +1.30 | it drifts |" in text
    assert "| replies | 72 | exact | – |" in text
    assert "| same ends | 60% | none | – |" in text
    assert "![A title](drift.png)" in text


def test_a_map_tells_how_many_pairs_of_the_studys_ends_lie_in_order_and_of_how_many_that_is_sure():
    shown = PersonaSpace.load("smollm2").summary()
    ends = results_page.map_figures(shown)["ends_in_order"]
    assert (ends.value, ends.n) == (1.0, 25)
    assert ends.low <= ends.value <= ends.high
    role = next(r for r in shown["roles"] if r["name"] == "ghost")
    role |= {"projection": 1e3, "interval": [-1e3, 2e3]}
    unsure = results_page.map_figures(shown)["ends_in_order"]
    assert (unsure.low, unsure.value, unsure.high) == (0.8, 0.8, 1.0)


def test_the_map_of_the_results_is_the_quickstarts_and_no_command_names_a_path_of_this_machine():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"map smollm2 --out $(RUN) {' '.join(experiments.QUICKSTART)}\n" in makefile
    line = ["experiment", "base-model", "--out", ROOT / "runs" / "x", "--base", "/elsewhere/gemma.gguf", "a b"]
    assert experiments.typed(line) == "personaspace experiment base-model --out runs/x --base gemma.gguf 'a b'"
    assert [experiments.from_root(argument) for argument in line[3:6]] == ["runs/x", "--base", "/elsewhere/gemma.gguf"]


def sections(text):
    """Each heading with the lines under it, blocks of code included."""
    title, lines, fenced = "", [], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            yield title, lines
            title, lines = line.lstrip("# "), []
        else:
            lines.append(line)
    yield title, lines


def lacking(lines):
    """What the tables of figures under one heading lack: a command, an interval in each row or told for all of them."""
    around = "\n".join(line for line in lines if not line.startswith("|"))
    rows = [line for line in lines if line.startswith("|")]
    measured = [row for row in rows if FIGURE.search(re.sub("`[^`]*`", "", row))]
    if not measured:
        return ""
    heads = "\n".join(row for row, below in itertools.pairwise(lines) if re.fullmatch(r"\|[\s:|-]+", below))
    sure = BESIDE.search(around + heads) or all(BESIDE.search(row) for row in measured)
    found = [] if COMMAND.search("\n".join(lines)) else ["command"]
    return " and ".join([*found, *([] if sure else ["interval"])])


def test_a_table_of_figures_lacks_something_where_no_command_or_no_interval_is_near_it():
    table = ["| what | how |", "| --- | --- |", "| cap | × 1.01 |", "| tasks | 45% |"]
    assert lacking(table) == "command and interval"
    assert lacking(["By `personaspace bench extract`, one run:", *table]) == ""
    assert lacking(["By `make bench`:", *table]) == "interval"
    assert lacking(["By `make bench`:", *table[:2], "| cap | × 1.01 (1.00 to 1.02) |", "| tasks | 45% (36–54) |"]) == ""
    assert lacking(["By `make bench`:", *table[:2], "| cap | × 1.01 (1.00 to 1.02) |", "| tasks | 45% |"]) == "interval"
    assert lacking(["| what | how |", "| --- | --- |", "| version | `2.13.0` |"]) == ""


def test_every_table_of_figures_in_readme_and_docs_has_its_command_and_its_intervals_near_it():
    without = {
        (page.name, title): what
        for page in PAGES
        if page.name not in GENERATED
        for title, lines in sections(page.read_text(encoding="utf-8"))
        if (what := lacking(lines))
    }
    assert without == LACKING
