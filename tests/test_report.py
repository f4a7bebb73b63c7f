"""The page in a real Chromium with the network off: every figure drawn, the search works, no error in the console; and it says
how sure it is before it shows anything, and names no role first or last where that is not known."""

from __future__ import annotations

import functools
import re
import shutil

import pytest
from playwright.sync_api import sync_playwright

import personaspace as ps
from accessible import barriers
from characters import characters, two_readings

BOTH = ("map", "histogram", "variance", "layers", "cosine", "separation")
RANKED = (*BOTH, "top", "bottom")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-background-networking", "--enable-unsafe-swiftshader", "--use-angle=swiftshader"]
CORRECTED = {
    "axis_pc1_cosine_corrected": 0.84,
    "components_for_70pct_corrected": 4.6,
    "default_on_pc1_corrected": 0.04,
    "axis_share": 0.257,
    "effective_dimension": 5.1,
    "null": {"axis_pc1_cosine": {"mean": 0.31, "p95": 0.48}, "components_for_70pct": {"mean": 13.0, "p95": 14.0}},
    "corrected_interval": {"axis_pc1_cosine_corrected": [0.71, 0.95]},
}


@pytest.fixture(scope="module")
def spaces(tmp_path_factory) -> dict[str, ps.PersonaSpace]:
    """By how sure they are: of everything, of the order alone, of nothing; of two readings; of what a space must hold."""
    folder = tmp_path_factory.mktemp("spaces")
    made = {n: characters(folder / n, signal) for n, signal in (("sure", 3.0), ("order", 1.0), ("unsure", 0.2))}
    made["sure"].meta["model"]["id"] = "tiny <b>&"
    both = two_readings(made["sure"], made["order"])
    made["two"] = ps.PersonaSpace(
        {**both.meta, "corrected": CORRECTED, "readings_agree": {"order": 0.96, "interval": [0.9, 1.0]}}, both.tensors
    )
    sure = made["sure"]
    made["compact"] = made["two"].compact()
    made["bare"] = ps.PersonaSpace(
        {k: sure.meta[k] for k in ("format", "model", "layer", "roles")},
        {k: sure.tensors[k] for k in ("role_vectors", "default_vector", "axis")},
    )
    return made


@pytest.fixture(scope="module")
def opened(spaces, tmp_path_factory):
    """Opens a space's page, and sees to it that it had no error in the end."""
    folder = tmp_path_factory.mktemp("pages")
    for name, space in spaces.items():
        ps.write_report(space, folder / f"{name}.html")
    assert CHROMIUM, "Chromium is needed: apt-get install chromium"
    problems: list[str] = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        @functools.cache  # a page of a whole plotting library takes seconds
        def open_(name: str, width: int = 1280):
            page = browser.new_context(viewport={"width": width, "height": 900}, offline=True).new_page()
            page.set_default_timeout(120_000)  # drawing without a GPU takes long on a machine that has much else to do
            page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda e: problems.append(str(e)))
            page.goto((folder / f"{name}.html").as_uri())
            page.wait_for_selector("html[data-ready=yes]", state="attached")
            return page

        yield open_
        browser.close()
    assert problems == []


def drawn(page) -> set[str]:
    """The figures that are there, each with something in it."""
    return set(
        page.evaluate(
            "[...document.querySelectorAll('.plot')].filter(p => p.querySelector('.main-svg')).map(p => p.id)"
        )
    )


def test_nothing_in_the_page_asks_the_network(spaces, tmp_path):
    own = re.sub(
        r"<script>.*?</script>", "", ps.write_report(spaces["sure"], tmp_path / "p.html").read_text(), flags=re.S
    )
    assert not re.search(r"(?:src|href)=[\"']https?:", own)


@pytest.mark.long
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_draws_every_figure_and_finds_a_role(opened, spaces, width):
    page = opened("sure", width)
    assert drawn(page) == set(RANKED)
    assert page.locator("#map canvas").count() > 0
    assert page.title() == "Persona space of tiny <b>&"
    role = spaces["sure"].roles[3]
    page.fill("#search", role)
    assert page.inner_text("#card h3") == role
    assert page.locator("#card blockquote").count() == 2
    page.fill("#search", "nobody")
    assert "no such role" in page.inner_text("#matches")


@pytest.mark.long
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["sure", "unsure", "two", "bare"])
def test_axe_finds_no_barrier(opened, name, width):
    assert barriers(opened(name, width)) == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["sure", "unsure", "two", "compact", "bare"])
def test_no_page_scrolls_sideways_on_a_phone(opened, name):
    assert opened(name, 390).evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "there"),
    [("compact", {*RANKED, "layers-reply"}), ("bare", set(RANKED) - {"histogram", "layers", "cosine", "separation"})],
)
def test_a_page_of_a_space_that_lacks_figures_leaves_them_out_and_works(opened, name, there):
    assert drawn(opened(name)) == there


@pytest.mark.long
def test_the_page_leads_with_axis_order_and_map_in_figures_and_words(opened, spaces):
    page = opened("sure")
    first = page.locator("main > section").first
    assert first.get_by_role("heading", level=2).inner_text() == "How sure is this map?"
    assert [t.split("\n")[0] for t in first.locator("h3").all_inner_texts()] == ["Axis", "Order", "Map"]
    told, whole = first.inner_text(), spaces["sure"].summary()["reliability"]["map"]
    assert f"Of the roles' squared distances, {100 * (1 - int(100 * whole) / 100):.0f}% is noise" in told
    assert first.locator(".track").count() == 3
    assert set(first.locator(".track > span").all_inner_texts()) == {"0.7", "0.9"}
    assert first.locator(".unknown").count() == 0


@pytest.mark.long
def test_each_layers_reliabilities_are_drawn_for_each_reading(opened):
    page = opened("two")
    names = "id => document.getElementById(id).data.map(t => t.name)"
    for id in ("layers", "layers-reply"):
        assert page.evaluate(names, id) == ["axis", "order", "map"]
    assert page.evaluate(names, "separation") == ["from prompts", "from replies"]


def test_two_readings_stand_in_one_panel_with_their_agreement(opened):
    panel = opened("two").locator(".sure")
    assert panel.count() == 1
    assert panel.locator(".value span").all_inner_texts() == ["from prompts", "from replies"] * 3
    assert "The two readings tell the order of the roles alike to 0.96" in panel.inner_text()


def test_a_page_says_of_which_reading_its_figures_are(opened):
    for name, noun in (("two", "prompts"), ("sure", "replies")):
        page = opened(name)
        assert set(page.locator("h2 .of").all_inner_texts()) == {f"from {noun}"}
        assert f"All figures below are of {noun}" in page.inner_text(".sure")


@pytest.mark.long
def test_where_the_order_is_not_known_no_role_is_first_or_last(opened, spaces):
    page, names = opened("unsure"), spaces["unsure"].roles
    assert drawn(page) == {*BOTH, "places"}
    assert "The order is not known (reliability 0." in page.inner_text("main")
    assert "#" not in page.locator("#all th").all_inner_texts()
    listed = [name.replace(" ", "_") for name in page.locator("#all td:first-child").all_inner_texts()]
    assert listed == sorted(names)
    text = page.evaluate("document.getElementById('map').data[0].text")
    assert set(text) == {""}, "no end is named on the map"
    page.fill("#search", names[0])
    assert "its rank not known" in page.inner_text("#card")
    ends = page.locator("table.cards").last.inner_text()
    assert ends.count("not known: the order's reliability is 0.") == 2
    assert not any(name in page.locator("table.cards td[data-label=here]").all_inner_texts() for name in names)


@pytest.mark.long
def test_most_similar_of_a_map_that_is_not_known_names_nobody(opened, spaces):
    page, role = opened("order"), spaces["order"].roles[0]
    assert spaces["order"].summary()["order_known"]
    page.fill("#search", role)
    assert page.locator("#card .similar button").count() == 0
    assert "Not known (reliability 0." in page.inner_text("#card")
    assert set(page.locator("#all td:last-child").all_inner_texts()) == {"not known"}


def test_most_similar_shows_what_stands_out_from_noise_with_its_interval_and_how_many_do_not(opened, spaces):
    page, space = opened("sure"), spaces["sure"]
    some = {role: space.neighbours(role, 6) for role in space.roles}
    assert any(clear and unclear for clear, unclear in some.values())
    for role, (clear, unclear) in some.items():
        page.fill("#search", role)
        shown = page.locator("#card .similar button").all_inner_texts()
        low_high = [f"{n.replace('_', ' ')} {c:.2f} ({low:.2f} to {high:.2f})" for n, c, (low, high) in clear]
        assert [re.sub("−", "-", s) for s in shown] == low_high
        told = page.inner_text("#card")
        assert ("not stand out from noise" in told) == bool(unclear)
        if unclear:
            assert f"{f'{unclear} more' if clear else 'None'} of the nearest 6" in told


def test_measured_corrected_and_shuffled_figures_stand_beside_the_studys(opened):
    two = opened("two")
    head = two.locator(".figures > div").first.inner_text()
    for text in ("0.84", "noise taken out, 95%: 0.71 to 0.95", "as measured", "0.31, in 95% under 0.48", "above 0.71"):
        assert text in head
    rows = two.locator("table.cards").first.locator("tbody tr").all_inner_texts()
    assert len(rows) == 5
    marks = two.evaluate("document.getElementById('cosine').data.map(t => t.name)")
    assert marks == ["from prompts", "from replies", "noise taken out", "roles shuffled"]
    plain = opened("sure")
    assert "as measured" in plain.locator(".figures > div").first.inner_text()
    assert "noise taken out" in plain.locator(".figures > div").first.inner_text()
    assert plain.locator("table.cards").first.locator("thead tr > *").count() == 5
    bare = opened("bare")
    assert "This space does not hold them with the noise taken out." in bare.inner_text("main")
    assert bare.locator("table.cards").first.locator("thead tr > *").count() == 3
