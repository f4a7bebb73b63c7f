"""The server's page in a real Chromium: ask both columns, watch chart and map, export and import; wide and at phone width."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import pytest

from personaspace.engines.transformers import TransformersEngine
from served import engine, serving, space

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def address(space, engine):
    talkative = TransformersEngine(engine.network, engine.tokenizer, id="tiny")
    talkative.chat.end_ids = frozenset()  # a random model may end at once, and an empty reply lies nowhere
    talkative.model = replace(talkative.model, context=8192)  # bytes are its tokens
    with serving(space, talkative, rows=4, max_tokens=64) as (at, _):
        yield at


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "Chromium is needed: apt-get install chromium"
    with sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser, address, width, problems):
    context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.goto(address)
    page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=20_000)
    return page


def ask(page, text, turn):
    page.fill("#message", text)
    page.press("#message", "Enter")
    for column in ("#standard", "#capped"):
        page.wait_for_selector(f"{column} .reply[data-projection] >> nth={turn}", state="attached", timeout=60_000)
    page.wait_for_selector("#stop", state="hidden", timeout=60_000)


def replies(page, column):
    found = page.locator(f"{column} .reply[data-projection]")
    return [float(found.nth(k).get_attribute("data-projection")) for k in range(found.count())]


@pytest.mark.parametrize("width", [1440, 390])
def test_both_columns_answer_and_are_charted_held_exported_and_imported(browser, address, space, width, tmp_path):
    problems: list[str] = []
    page = opened(browser, address, width, problems)
    ask(page, "hello", 0)
    ask(page, "and again", 1)
    floor = dict(zip(space.cap().layers, space.cap().floor, strict=True))[space.layer]
    assert all(p >= floor - 1e-2 for p in replies(page, "#capped"))
    assert len(replies(page, "#standard")) == 2
    assert page.locator("#chart .main-svg").count() > 0
    points = page.evaluate("document.querySelector('#chart').data.map(t => (t.y || []).filter(v => v !== null).length)")
    assert points.count(2) >= 2, "two turns of two columns are on the chart"
    assert page.evaluate("document.querySelector('#map').data.length") >= 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    if not page.locator("#export").is_visible():  # on a phone the settings are folded
        page.click("#settings > summary")
    with page.expect_download() as got:
        page.click("#export")
    file = tmp_path / "talk.json"
    got.value.save_as(file)
    before = {c: replies(page, c) for c in ("#standard", "#capped")}
    other = opened(browser, address, width, problems)
    other.set_input_files("input[type=file]", file)
    other.wait_for_selector("#standard .reply[data-projection] >> nth=1", state="attached")
    assert {c: replies(other, c) for c in ("#standard", "#capped")} == before
    assert json.loads(file.read_text())
    assert problems == []


def test_a_preset_role_becomes_the_system_prompt_and_a_ready_conversation_is_asked_to_its_end(browser, address):
    problems: list[str] = []
    page = opened(browser, address, 1440, problems)
    page.fill("#preset", "ghost")
    page.press("#preset", "Enter")
    for _ in range(50):
        if "ghost" in page.input_value("#system").lower():
            break
        page.wait_for_timeout(100)
    assert "ghost" in page.input_value("#system").lower()
    values = page.evaluate("[...document.querySelectorAll('#ready option')].map(o => o.value).filter(Boolean)")
    assert len(values) >= 4
    page.select_option("#ready", values[0])
    page.click("#play")
    for column in ("#standard", "#capped"):
        page.wait_for_selector(f"{column} .reply[data-projection] >> nth=4", state="attached", timeout=90_000)
    assert problems == []


def test_the_page_is_there_within_a_second(browser, address):
    opened(browser, address, 1440, [])  # the browser's own first start is not the page's
    began = time.monotonic()
    page = opened(browser, address, 1440, [])
    assert page.title()
    print(f"loaded in {time.monotonic() - began:.2f} s")
