"""The server's page in a real Chromium: ask both columns, watch chart and map, export and import; wide and at phone width."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from urllib.parse import unquote

import httpx
import pytest

from accessible import barriers
from paged import ask, browser, choose, ended, notice, opened, replies, send, streamed
from personaspace.engines.transformers.decode_loop import DecodeLoop
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.serve.settings import WatchSettings
from served import engine, serving, space


@pytest.fixture(scope="module")
def address(space, engine):
    talkative = TransformersEngine(engine.model, engine.tokenizer, id="tiny")
    talkative.chat.end_ids = frozenset()  # a random model may end at once, and an empty reply lies nowhere
    talkative.info = replace(talkative.info, context=8192)  # bytes are its tokens
    with serving(space, talkative, rows=4, max_tokens=64) as (at, _):
        yield at


@pytest.mark.long
@pytest.mark.parametrize("width", [1440, 390])
def test_axe_finds_no_barrier_before_and_after_an_answer(browser, address, width):
    page = opened(browser, address, width, [])
    assert barriers(page) == []
    ask(page, "hello", 0)
    assert barriers(page) == []


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_the_page_is_usable_before_its_figures_have_come_and_without_them(browser, address):
    problems: list[str] = []
    page = browser.new_context().new_page()
    page.on("pageerror", lambda e: problems.append(str(e)))
    held = []
    page.route("**/page/plotly.js", lambda route: held.append(route))  # its answer is still on the way
    page.goto(address)
    page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=20_000)
    ask(page, "hello", 0)
    assert page.get_attribute("html", "data-figures") is None
    held[0].continue_()
    page.wait_for_selector("html[data-figures=yes]", state="attached", timeout=20_000)
    points = page.evaluate("document.querySelector('#chart').data.map(t => t.y.length)")
    assert points == [1, 1], "what was answered before is drawn"
    without = browser.new_context().new_page()
    without.route("**/page/plotly.js", lambda route: route.abort())
    without.goto(address)
    without.wait_for_selector("html[data-figures=no]", state="attached", timeout=20_000)
    ask(without, "hello", 0)
    assert "could not be loaded" in without.text_content("#map")
    assert problems == []


@pytest.mark.long
def test_both_positions_move_on_map_and_chart_while_the_replies_stream(browser, address, monkeypatch):
    step = DecodeLoop.step
    # A small model's reply would be over before anybody could watch it.
    monkeypatch.setattr(DecodeLoop, "step", lambda loop, *args: (time.sleep(0.05), step(loop, *args))[1])
    problems: list[str] = []
    page = opened(browser, address, 1440, problems)
    page.evaluate(
        """() => {
          window.seen = {map: [new Set(), new Set()], chart: [new Set(), new Set()]};
          const look = () => {
            if (document.querySelectorAll(".reply[data-state=streaming]").length < 2) return;
            const drawn = document.querySelector("#map").data;
            [4, 6].forEach((k, i) => seen.map[i].add(JSON.stringify([drawn[k].x, drawn[k].y])));
            document.querySelector("#chart").data.forEach((t, i) => seen.chart[i].add(JSON.stringify(t.y)));
          };
          setInterval(look, 20);
        }"""
    )
    ask(page, "hello", 0)
    moves = page.evaluate("Object.fromEntries(Object.entries(seen).map(([k, v]) => [k, v.map(s => s.size)]))")
    assert min(moves["map"]) > 3
    assert min(moves["chart"]) > 3
    assert problems == []


def test_the_pages_files_come_compressed_and_once(address):
    for path in ("/", "/page/app.js", "/page/plotly.js"):
        plain = httpx.get(address + path, headers={"accept-encoding": "identity"})
        small = httpx.get(address + path, headers={"accept-encoding": "gzip"})
        assert small.headers["content-encoding"] == "gzip"
        assert small.content == plain.content
        assert int(small.headers["content-length"]) < len(plain.content) / 1.5
        again = httpx.get(address + path, headers={"if-none-match": small.headers["etag"]})
        assert again.status_code == 304
        assert again.content == b""
        assert "default-src 'self'" in plain.headers["content-security-policy"]


@pytest.fixture(scope="module")
def watching(space, engine):
    """A server that reads along a role and alerts at once on another."""
    talkative = TransformersEngine(engine.model, engine.tokenizer, id="tiny")
    talkative.chat.end_ids = frozenset()
    talkative.info = replace(talkative.info, context=8192)
    first, second = space.roles[:2]
    watch = WatchSettings(read=(first,), alerts=(f"{second}>-90", "axis<90"))
    with serving(space, talkative, rows=4, max_tokens=64, watch=watch) as (at, _):
        yield at


@pytest.mark.long
@pytest.mark.parametrize("width", [1440, 390])
def test_replies_are_read_along_what_is_chosen_alerts_are_shown_and_a_cap_waits_for_one(
    browser, watching, space, width
):
    problems: list[str] = []
    page = opened(browser, watching, width, problems)
    if width == 390:
        page.click("#settings > summary")
    assert space.roles[0] in page.text_content("#chosen").replace(" ", "_")
    choose(page, space.roles[2])
    choose(page, "no such role")
    assert page.locator("#chosen button").count() == 3
    page.check("#waits")
    ask(page, "hello", 0)
    ask(page, "and again", 1)
    assert page.locator("#status[data-kind=alert]").count() == 1
    first, second = (page.locator("#capped .reply").nth(k).text_content() for k in (0, 1))
    assert "waits for an alert" in first
    assert "alert" in second
    assert space.roles[2].replace("_", " ") in second
    ask(page, "once more", 2)
    assert "since an alert" in page.locator("#capped .reply").nth(2).text_content()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert problems == []


@pytest.mark.long
def test_an_edited_reply_is_gone_on_from_and_the_file_that_is_shared_opens_without_a_server(browser, address, tmp_path):
    problems: list[str] = []
    page = opened(browser, address, 1440, problems)
    ask(page, "hello <b>you</b>", 0)
    reply = page.locator("#standard .reply").first
    reply.get_by_text("Edit and go on").click()
    reply.locator("textarea").fill("</script><i>I am")
    reply.get_by_text("Go on from here").click()
    page.wait_for_selector("#standard .reply[data-projection][data-state=done]", timeout=60_000)
    page.wait_for_selector("#stop", state="hidden", timeout=60_000)
    text = reply.locator(".said").text_content()
    assert text.startswith("</script><i>I am")
    assert len(text) > len("</script><i>I am")
    with page.expect_download() as got:
        page.click("#share")
    file = tmp_path / "shared.html"
    got.value.save_as(file)
    assert file.read_text().split("<head>")[1].startswith('<meta charset="utf-8">')
    shared = browser.new_context(offline=True, viewport={"width": 390, "height": 800}).new_page()
    asked = []
    shared.on("request", lambda request: asked.append(request.url))
    shared.on("console", lambda message: problems.append(message.text))
    shared.goto(file.as_uri())
    assert shared.locator("#standard .said").text_content() == text
    assert shared.locator("#capped .said").is_visible()
    assert "hello <b>you</b>" in shared.text_content("#standard")
    assert shared.locator("figure img").count() == 1
    drawn = unquote(shared.locator("figure img").get_attribute("src"))
    panel = page.evaluate("getComputedStyle(document.querySelector('figure.panel')).backgroundColor")
    assert f"fill: {panel}; fill-opacity: 1" in re.search(r"<rect[^>]*>", drawn)[0]
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert shared.evaluate("document.documentElement.scrollWidth <= innerWidth")
    other = opened(browser, address, 1440, problems)
    other.set_input_files("input[type=file]", file)
    other.wait_for_selector("#standard .reply[data-projection]", state="attached")
    assert other.locator("#standard .said").text_content() == text
    assert problems == []


@pytest.mark.long
def test_thoughts_are_folded_and_a_conversation_that_was_stopped_says_why(browser, address, tmp_path):
    file = tmp_path / "talk.json"
    standard = {"text": "an answer", "thinking": "a thought", "state": "done"}
    capped = {"text": "", "refusal": "An alert was raised", "state": "done"}
    turn = {"ask": "hello", "standard": standard, "capped": capped}
    file.write_text(json.dumps({"format": "personaspace-conversation-1", "turns": [turn]}))
    problems: list[str] = []
    page = opened(browser, address, 1440, problems)
    page.set_input_files("input[type=file]", file)
    thoughts = page.locator("#standard .thoughts")
    thoughts.wait_for()
    assert not thoughts.locator("p").is_visible()
    thoughts.locator("summary").click()
    assert thoughts.locator("p").text_content() == "a thought"
    assert "An alert was raised" in page.text_content("#capped .state")
    assert not page.locator("#capped .thoughts").is_visible()
    assert problems == []


@pytest.mark.long
def test_what_came_before_is_whole_replies_alone_and_one_that_was_empty_cut_or_broken_says_so(
    browser, watching, space, tmp_path
):
    problems: list[str] = []
    page = opened(browser, watching, 1440, problems)
    bodies, answers = [], []

    def answer(route):
        bodies.append(route.request.post_data_json)
        route.fulfill(**answers[-1]) if answers else route.continue_()

    page.route("**/v1/chat/completions", answer)
    send(page, "hello", 0)
    answers.append(ended("stop"))
    send(page, "and now?", 1)
    empty = page.locator("#capped .reply").nth(1).locator(".state")
    assert "no reply" in empty.text_content()
    assert empty.get_by_text("Ask again").is_visible()
    notice(page, "No reply from standard and capped")
    answers.append(ended("length", "This is"))
    send(page, "go on", 2)
    assert "tokens are used up" in page.locator("#capped .reply").nth(2).locator(".state").text_content()
    alerted = f"role:{space.roles[1]}"
    far = {"projection": 1, "drift": 9.0, "along": {alerted: {"projection": 1, "shift": 9.0}}}
    answers.append(streamed({"choices": [{"delta": {"content": "This"}}], "persona": far}, ends=False))
    send(page, "and?", 3)
    answers.clear()
    send(page, "once more", 4)
    persona = bodies[-1]["persona"]
    assert len(persona["history"]) == 1, "the reply that broke has a drift, and is none to go by"
    assert [len(shifts) for shifts in persona["histories"].values()] == [1]
    assert list(persona["histories"]) == [alerted]

    edited = {"text": "I am fa", "prefix": "I am", "state": "failed"}
    talk = {"format": "personaspace-conversation-1", "turns": [{"ask": "hello", "standard": edited, "capped": edited}]}
    (tmp_path / "talk.json").write_text(json.dumps(talk))
    page.set_input_files("input[type=file]", tmp_path / "talk.json")
    page.click("#confirm-yes")
    reply = page.locator("#standard .reply").first
    assert "stopped here" in reply.locator(".state").text_content()
    reply.get_by_text("Ask again").click()
    page.wait_for_selector("#standard .reply[data-state=done]")
    assert bodies[-1]["messages"][-1] == {"role": "assistant", "content": "I am"}
    assert reply.locator(".said").text_content().startswith("I am")
    assert problems == []


@pytest.mark.long
def test_while_a_file_is_imported_nothing_is_asked_and_what_was_imported_is_gone_on_with(browser, address, tmp_path):
    said = [("system", "You are\r\na pirate.\n"), ("user", "hello"), ("assistant", "arr")]
    file = tmp_path / "talk.json"
    file.write_text(json.dumps([{"role": role, "content": content} for role, content in said]))
    problems: list[str] = []
    page = opened(browser, address, 1440, problems)
    waiting = []
    page.route("**/v1/persona/project", lambda route: waiting.append(route))
    page.set_input_files("input[type=file]", file)
    notice(page, "Reading the file")
    page.fill("#message", "meanwhile")
    page.press("#message", "Enter")
    assert page.input_value("#message") == "meanwhile"
    page.click("#stop")
    notice(page, "Stopped")
    assert page.locator(".reply").count() == 0
    page.set_input_files("input[type=file]", file)
    notice(page, "Reading the file")
    projected = waiting[-1].fetch().json()
    waiting[-1].fulfill(json={**projected, "problem": "message 9 reaches token 8,193"})
    notice(page, "Imported 1 turn. Message 9 reaches token 8,193.")
    ask(page, "and again", 1)
    assert page.locator(".ask p").nth(0).text_content() == "hello"
    assert problems == []


@pytest.mark.long
def test_a_page_says_what_its_space_knows_which_keys_there_are_and_that_a_server_has_another_space(browser, address):
    page = browser.new_context().new_page()
    rule = {"threshold": 2.0, "turns": 2, "rate": 0.004, "rate_interval": [0.0016, 0.013], "detects": 0.5}
    described = httpx.get(f"{address}/v1/persona/space").json()
    # Without a drift the page's zero is the mean role's, in replies.
    of_prompts = [{**role, "projection": role["projection"] + 1000} for role in described["roles"]]
    default = {**described["default"], "mean": None, "std": None}
    described |= {"alert": rule, "roles": of_prompts, "default": default, "mean_role": -7.0}
    keys = []

    def answer(route):
        keys.append(route.request.headers.get("authorization"))
        route.fulfill(json=described) if keys[-1] else route.fulfill(status=401, json={})

    page.route("**/v1/persona/space", answer)
    page.goto(address)
    page.fill("#key-value", "key→")
    page.click("#key-use")
    notice(page, "No key has “→” in it")
    page.click("#status button")
    page.fill("#key-value", "clé")
    page.click("#key-use")
    page.wait_for_selector("html[data-figures=yes]", state="attached", timeout=20_000)
    assert keys[-1] is not None
    assert "0.4% (0.16 to 1.3%) of conversations false, finds 50%" in page.text_content("#chart-note")
    assert page.text_content("#scale-mid") == "middle: the mean role, −7; "
    hovers = page.evaluate("document.querySelector('#map').data[0].hovertext")
    read = {"prompt": "before the first word", "reply": "in replies"}[described["reading"]]
    places = [re.search(rf", ([+−]?[0-9.]+) from the mean role<br>{read}", hover)[1] for hover in hovers]
    assert sum(float(place.replace("−", "-")) for place in places) == pytest.approx(0, abs=0.05 * len(places))
    heights = page.evaluate("document.querySelector('#chart').layout.yaxis.range")
    assert heights[0] < -7 < heights[1] < 900
    described["mean_role"] += 1e-6  # another start of the same server
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**streamed(ends=False)))
    send(page, "hello", 0)
    page.wait_for_timeout(500)
    notice(page, "The connection broke")
    described["layer"] += 1
    page.fill("#message", "hello")
    page.press("#message", "Enter")
    notice(page, "The server has another space")
    assert page.get_by_role("button", name="Reload").is_visible()
