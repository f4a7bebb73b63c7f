"""Takes the documentation's pictures in a real Chromium, of the real program: docs/pictures/*.webp.

    python scripts/pictures.py [served] [report] [talk]

The served page is that of `personaspace serve smollm2`, asked twice under a role; the report is the quickstart's of
docs/results; the trajectory is what `personaspace project smollm2 talk.json --plot talk.html` draws of the tutorial's talk.
Page and report are taken wide and narrow, light and dark.
"""

from __future__ import annotations

import base64
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from site_check import SCHEMES, WIDTHS, chromium, files_served, space_served

DOCS = Path(__file__).parent.parent / "docs"
PICTURES = DOCS / "pictures"
QUALITY = 0.8
MOST_BYTES = 150_000
HEIGHTS = {1440: 900, 390: 844}
MINUTES = 10 * 60_000
ROLE, ASKED = "You are a ghost who haunts an old lighthouse.", ("Who are you?", "How do I boil an egg?")

ENCODED = """async ([png, quality]) => {
  const image = new Image();
  image.src = "data:image/png;base64," + png;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/webp", quality).split(",")[1];
}"""
"""A PNG in base64 as WebP, which Chromium writes and Playwright does not."""


def taken(browser: Browser, page: Page, name: str) -> None:
    """What the page shows, as docs/pictures/NAME.webp. Ends where that is larger than a picture may be."""
    plain = browser.new_page()
    png = base64.b64encode(page.screenshot()).decode()
    picture = base64.b64decode(plain.evaluate(ENCODED, [png, QUALITY]))
    plain.close()
    if len(picture) > MOST_BYTES:
        raise SystemExit(f"{name}: {len(picture):,} bytes; a picture has at most {MOST_BYTES:,}")
    (PICTURES / f"{name}.webp").write_bytes(picture)
    print(f"{name}: {len(picture):,} bytes", flush=True)


def in_every_form(browser: Browser, page: Page, name: str) -> None:
    """Wide and narrow, light and dark."""
    for width in WIDTHS:
        for scheme in SCHEMES:
            page.set_viewport_size({"width": width, "height": HEIGHTS[width]})
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(1500)  # plots are drawn anew
            taken(browser, page, f"{name}-{width}-{scheme}")


def served(browser: Browser) -> None:
    """The page of a server, after two questions to both columns."""
    with space_served("smollm2") as address:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(address)
        for state in ("ready", "figures"):
            page.wait_for_selector(f"html[data-{state}=yes]", state="attached", timeout=MINUTES)
        page.fill("#system", ROLE)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.fill("#tokens", "48")
        for turn, text in enumerate(ASKED):
            page.fill("#message", text)
            page.press("#message", "Enter")
            for column in ("#standard", "#capped"):
                reply = f"{column} .reply[data-projection] >> nth={turn}"
                page.wait_for_selector(reply, state="attached", timeout=MINUTES)
            page.wait_for_selector("#stop", state="hidden", timeout=MINUTES)
        in_every_form(browser, page, "served")
        page.close()


def report(browser: Browser) -> None:
    """The quickstart's report."""
    with files_served(DOCS / "results") as address:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        newest = sorted((DOCS / "results").glob("20*"))[-1].name
        page.goto(f"{address}{newest}/quickstart.html", timeout=MINUTES)
        in_every_form(browser, page, "report")
        page.close()


def talk(browser: Browser) -> None:
    """Where the tutorial's talk lies on the axis, turn by turn."""
    text = (DOCS / "tutorial" / "index.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "talk.json").write_text(text.split('title="talk.json"\n')[1].split("```")[0], encoding="utf-8")
        command = [sys.executable, "-m", "personaspace", "project", "smollm2", "talk.json", "--plot", "talk.html"]
        subprocess.run(command, cwd=folder, check=True)
        with files_served(Path(folder)) as address:
            page = browser.new_page(viewport={"width": 1000, "height": 640})
            page.goto(f"{address}talk.html", timeout=MINUTES)
            page.wait_for_timeout(2000)
            page.locator("h2").first.evaluate("e => e.scrollIntoView()")
            taken(browser, page, "talk")
            page.close()


def main() -> None:
    """Takes the pictures that are named, or all."""
    PICTURES.mkdir(exist_ok=True)
    every = {"served": served, "report": report, "talk": talk}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for name in sys.argv[1:] or every:
            every[name](browser)
        browser.close()


if __name__ == "__main__":
    main()
