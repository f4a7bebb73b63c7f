"""What a stranger's file holds is shown as text: in the terminal, on pages, on a model's card."""

from __future__ import annotations

import io
import json
import re
import shutil
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import sync_playwright
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table
from rich.text import Text

import personaspace as ps
from personaspace.cli.terminal import Terminal, visible
from personaspace.formats.hub import as_markdown, model_card
from personaspace.holding.monitor import TurnReading
from personaspace.holding.trajectories import write_trajectories
from personaspace.report.page import embedded
from personaspace.serve.metrics import PersonaMetrics
from personaspace.serve.watch import WatchedReply

HOSTILE = [
    "gh[/bold]ost",
    "[link=https://example.org]ghost[/link]",
    "[red]ghost",
    ":skull:",
    "\x1b[31mghost\x1b[0m",
    "\x1b]0;title\x07ghost",
    "\x9b31mghost",
    "gh\u202eost",
    "ghost\rclerk",
    "gh\x08\x08ost",
    "gh\ud800ost",
]


def shown(*printed: object, **options: object) -> str:
    file = io.StringIO()
    console = Terminal(file=file, force_terminal=True, width=100, **options)
    for what in printed:
        console.print(what)
    return file.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("way", ["line", "table", "styled"])
def test_a_name_is_shown_as_it_is_written_whatever_is_in_it(name, way):
    table = Table("role", box=None)
    table.add_row(name)
    printed = {"line": name, "table": table, "styled": Text(f"near {name}", style="red")}[way]
    # Rich's own colours stand around a text, and nothing else does.
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown(printed).replace("\x1b[31mghost\x1b[0m", "escaped"))
    assert "escaped" not in plain
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in plain if c != "\n")
    assert "\u202e" not in plain
    assert visible(name) in plain or way == "styled"  # a styled text loses what rich itself takes out
    plain.encode()


@given(st.text())
def test_nothing_that_moves_a_cursor_or_cannot_be_printed_gets_through(text):
    printed = shown(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in printed if c not in "\n\t")
    assert not set(printed) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u2028\u2029")


@given(st.recursive(st.text() | st.none() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_json_for_machines_is_still_the_same_json(value):
    file = io.StringIO()
    Terminal(file=file).print_json(json.dumps(value))
    assert json.loads(file.getvalue()) == value


@pytest.mark.parametrize(
    "text", ["caf\u00e9", "\u4f60\u597d", "a\tb", "two\nlines", "👩\u200d🚀", "\u0646\u200c\u0645"]
)
def test_what_people_write_stays_as_it_is(text):
    assert visible(text) == text


MARKUP = [
    "<!--<script>",
    "</script><script>hostile()</script>",
    "[x](javascript:hostile())",
    "<img src=x onerror=hostile()>",
    "<a href='https://example.org'>x</a>",
    "a|b",
    "`x`",
]


@pytest.mark.parametrize("name", MARKUP)
def test_a_models_card_shows_names_as_text(name):
    space = ps.PersonaSpace.load("smollm2")
    roles = [f"{name}{k}" for k in range(len(space.roles))]
    meta = {**space.meta, "roles": roles, "model": {**space.meta["model"], "id": f"folder of {name}"}}
    card = model_card(ps.PersonaSpace(meta, space.tensors), "owner/name")
    body = re.sub(r"`[^`\n]*`|```.*?```", "", card.partition("\n---\n")[2], flags=re.S)
    assert not re.search(r"(?<!\\)[<\[]|(?<!\\)\](?=\()", body)
    assert any(as_markdown(role) in card for role in roles)


@given(st.text())
def test_as_markdown_is_one_line_in_which_no_mark_is_bare(text):
    written = as_markdown(text)
    assert "\n" not in written
    assert not re.search(r"[`*\[\]<>|#!~&]", re.sub(r"\\[\\`*\[\]<>|#!~&]", "", written))


@pytest.mark.parametrize("name", [*MARKUP, 'a"b\\c\nd'])
def test_a_models_name_is_one_label_of_the_metrics(name):
    registry = CollectorRegistry()
    metrics = PersonaMetrics(ps.PersonaSpace.load("smollm2"), registry)
    metrics.reply(name, WatchedReply({"projection": 1.0, "capped_tokens": 2, "alert": True}, {}))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    labels = {sample.labels["model"] for family in families for sample in family.samples}
    assert labels == {name}


@pytest.mark.parametrize("name", MARKUP)
def test_json_in_a_page_neither_ends_its_script_nor_begins_another(name):
    text = embedded({"name": name, name: [name, float("nan")]})
    assert "<" not in text
    assert json.loads(text) == {"name": name, name: [name, None]}


@pytest.mark.long
def test_pages_of_a_space_with_hostile_names_draw_everything_and_run_nothing(tmp_path):
    space = ps.PersonaSpace.load("smollm2")
    roles = [f"{MARKUP[k % len(MARKUP)]}{k}" for k in range(len(space.roles))]
    samples = {role: [[role, role]] for role in roles}
    hostile = ps.PersonaSpace(
        {**space.meta, "roles": roles, "samples": samples, "descriptions": dict(zip(roles, roles, strict=True))},
        space.tensors,
    )
    ps.write_report(hostile, tmp_path / "report.html")
    readings = [TurnReading(1, 3, 0.5, 0.1, [(roles[0], 0.9)], False, (0, 1), (0.5,), roles[1])]
    write_trajectories(tmp_path / "turns.html", hostile, [(name, readings) for name in MARKUP])
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--enable-unsafe-swiftshader"])
        page = browser.new_context(offline=True).new_page()
        problems: list[str] = []
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.add_init_script("window.hostile = () => { window.ran = true }")
        page.goto((tmp_path / "report.html").as_uri())
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        assert roles[0] in page.inner_text("main")
        page.fill("#search", roles[0])
        assert page.inner_text("#card h3") == roles[0]
        page.goto((tmp_path / "turns.html").as_uri())
        page.wait_for_selector("#figure0 .main-svg")
        assert page.locator("h2").all_inner_texts()[2:] == MARKUP
        legend = page.locator("#figure0 .legendtext").all_text_contents()
        assert legend == MARKUP
        assert page.locator("#figure0 a").count() == 0
        assert not page.evaluate("window.ran")
        assert problems == []
        browser.close()
