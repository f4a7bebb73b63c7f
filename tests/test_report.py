"""The page in a real Chromium with the network off: every figure drawn, the search works, no error in the console."""

from __future__ import annotations

import re
import shutil

import pytest

import personaspace as ps
from conftest import make_model, make_tokenizer

FIGURES = ("map", "top", "bottom", "histogram", "variance", "layers", "separation")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-background-networking", "--enable-unsafe-swiftshader", "--use-angle=swiftshader"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, small_catalog):
    from personaspace.engines.transformers import TransformersEngine

    folder = tmp_path_factory.mktemp("report")
    engine = TransformersEngine(make_model("llama"), make_tokenizer(), id="tiny <b>&", rows=16)
    ps.map(engine, folder, catalog=small_catalog, per_role=4, default_responses=24, max_new_tokens=6)
    return folder / "report.html"


def test_nothing_in_the_page_asks_the_network(page_file):
    own = re.sub(r"<script>.*?</script>", "", page_file.read_text(), flags=re.S)
    assert not re.search(r"(?:src|href)=[\"']https?:", own)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_draws_every_figure_and_finds_a_role(page_file, width):
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "Chromium is needed: apt-get install chromium"
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
        page = context.new_page()
        problems: list[str] = []
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        for figure in FIGURES:
            assert page.locator(f"#{figure} .main-svg").count() > 0, figure
        assert page.locator("#map canvas").count() > 0
        assert page.title() == "Persona space of tiny <b>&"
        page.fill("#search", "ghost")
        assert page.inner_text("#card h3") == "ghost"
        assert page.locator("#card blockquote").count() == 2
        page.fill("#search", "nobody")
        assert "no such role" in page.inner_text("#matches")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        assert problems == []
        browser.close()


def test_a_page_of_a_space_that_lacks_figures_leaves_them_out_and_works(page_file, tmp_path):
    from playwright.sync_api import sync_playwright

    whole = ps.PersonaSpace.load(page_file.parent)
    bare = ps.PersonaSpace(
        {k: whole.meta[k] for k in ("format", "model", "layer", "roles")},
        {k: whole.tensors[k] for k in ("role_vectors", "default_vector", "axis")},
    )
    for name, space in (("compact", whole.compact()), ("bare", bare)):
        ps.write_report(space, tmp_path / f"{name}.html")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name, missing in (("compact", set()), ("bare", {"histogram", "layers", "separation"})):
            page = browser.new_page()
            problems: list[str] = []
            page.on("console", lambda m, found=problems: found.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda e, found=problems: found.append(str(e)))
            page.goto((tmp_path / f"{name}.html").as_uri())
            page.wait_for_selector("html[data-ready=yes]", state="attached")
            assert {f for f in FIGURES if not page.locator(f"#{f} .main-svg").count()} == missing
            assert problems == []
        browser.close()
