"""The server's page in a real Chromium, for its tests: opened, asked, and answered as a small random model would not."""

from __future__ import annotations

import json
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
    page.wait_for_selector("html[data-figures=yes]", state="attached", timeout=20_000)
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


def choose(page, name):
    page.fill("#read", name)
    page.dispatch_event("#read", "change")


def streamed(*chunks, ends=True):
    """An answer as the server streams it, for what a small random model doesn't do when it should."""
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return {"content_type": "text/event-stream", "body": "".join([*lines, "data: [DONE]\n\n"] if ends else lines)}


def ended(finish, text=""):
    return streamed({"choices": [{"delta": {"content": text}, "finish_reason": finish}]})


def send(page, text, turn):
    """Asks both, whatever becomes of it."""
    page.fill("#message", text)
    page.press("#message", "Enter")
    for column in ("#standard", "#capped"):
        page.wait_for_selector(f"{column} .reply:is([data-state=done], [data-state=failed]) >> nth={turn}")
    page.wait_for_selector("#stop", state="hidden")


def notice(page, text):
    page.locator("#status .say").get_by_text(text).wait_for(timeout=20_000)
