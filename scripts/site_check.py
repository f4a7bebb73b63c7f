"""Looks at the built site, at the page of a server and at a map's report in a real Chromium, and prints what it sees.

    make site        # builds the site first
    python scripts/site_check.py

Printed are the site's size, how long each page takes to load from this machine, and what axe finds, light and dark, at 1440 and
390 pixels. Ends with 1 where axe calls anything serious or critical, or where a page scrolls sideways.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, sync_playwright

import personaspace as ps

SITE = Path(__file__).parent.parent / "site"
WIDTHS = (1440, 390)
SCHEMES = ("light", "dark")
GRAVE = ("serious", "critical")
SECONDS = 60


class QuietFiles(SimpleHTTPRequestHandler):
    """Files of a folder, with no line a request."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def files_served(folder: Path) -> Iterator[str]:
    """A folder at an address of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


@contextmanager
def space_served(space: str) -> Iterator[str]:
    """`personaspace serve` as a process of its own, at an address of this machine."""
    command = [sys.executable, "-m", "personaspace", "serve", space, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next((x for x in process.stderr if " at http://" in x), "")
        address = re.search(r" at (http://\S+)", line)
        if address is None:
            raise SystemExit(f"serve {space} did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield address[1]
    finally:
        process.terminate()
        process.wait(SECONDS)


def chromium() -> str:
    """The Chromium of this machine. Ends where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise SystemExit("Chromium is needed: apt-get install chromium")


def looked_at(browser: Browser, name: str, address: str) -> bool:
    """Prints a page's time to load and what axe finds on it; whether nothing grave was there."""
    fine = True
    for scheme in SCHEMES:
        page = browser.new_context(viewport={"width": WIDTHS[0], "height": 900}, color_scheme=scheme).new_page()
        page.goto(address, wait_until="load", timeout=1000 * SECONDS)
        milliseconds = page.evaluate("performance.getEntriesByType('navigation')[0].duration")
        print(f"{name}, {scheme}: loaded in {milliseconds / 1000:.2f} s", flush=True)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(500)  # what a page draws anew is looked at, too
            findings = Axe().run(page).response["violations"]
            grave = sum(finding["impact"] in GRAVE for finding in findings)
            sideways = page.evaluate("document.documentElement.scrollWidth > innerWidth")
            print(
                f"  {width:>4} axe: {grave} serious, {len(findings) - grave} lesser"
                + ("; scrolls sideways" if sideways else ""),
                flush=True,
            )
            for finding in findings:
                places = ", ".join(str(node["target"][0]) for node in finding["nodes"][:3])
                print(f"    {finding['impact']}: {finding['help']} ({len(finding['nodes'])}: {places})")
            fine = fine and not grave and not sideways
        page.context.close()
    return fine


def main() -> None:
    """Prints everything, and ends with 1 where something grave was found."""
    if not (SITE / "index.html").exists():
        raise SystemExit("there is no site yet: make site")
    every = [path for path in SITE.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in every)
    print(f"the site: {len(every)} files, {size / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        ps.write_report(ps.PersonaSpace.load("smollm2"), Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        with files_served(SITE) as site, files_served(Path(folder)) as reports, space_served("smollm2") as server:
            pages = {
                "landing page": site,
                "tutorial": f"{site}tutorial/",
                "served page": server,
                "report": f"{reports}report.html",
            }
            fine = [looked_at(browser, name, address) for name, address in pages.items()]
        browser.close()
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    main()
