"""What axe finds on a page that is open in a browser: for tests of the pages that the program makes and serves."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page


def barriers(page: Page) -> list[str]:
    """What axe finds, however slight: its rule, and where."""
    findings = Axe().run(page).response["violations"]
    return [f"{finding['id']}: {node['target'][0]}" for finding in findings for node in finding["nodes"]]
