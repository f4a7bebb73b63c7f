"""How the site is made of the repository: links, docstrings and pictures; `make site` builds the whole of it, strictly."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*"))


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "scripts" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_link_leads_to_where_its_target_is_on_the_site(hooks):
    on_site = {"SECURITY.md", "server.md", "decisions/index.md", "howto/deploy.md", "deploy/README.md"}
    assert hooks.mended("[why](../SECURITY.md)", "server.md", on_site) == "[why](SECURITY.md)"
    assert hooks.mended("[how](../../deploy/README.md#x)", "howto/deploy.md", on_site) == "[how](../deploy/README.md#x)"
    assert hooks.mended("[why](docs/decisions)", "CONTRIBUTING.md", on_site) == "[why](decisions/index.md)"


def test_a_link_to_a_file_that_is_not_on_the_site_keeps_its_text_and_one_to_nowhere_is_left_to_be_noticed(hooks):
    assert hooks.mended("[a test](tests/test_docs.py)", "SECURITY.md", set()) == "a test"
    nowhere = "[gone](no-such-page.md)"
    assert hooks.mended(nowhere, "server.md", set()) == nowhere
    elsewhere = "[the study](https://arxiv.org/abs/2601.10387), [below](#here)"
    assert hooks.mended(elsewhere, "server.md", set()) == elsewhere


def test_a_docstrings_examples_and_trees_are_fenced_and_its_prose_is_not(hooks):
    shown = hooks.fenced("Adds two.\n\n>>> 1 + 1\n2\n\nRaises `ValueError`.\n\nErrors\n├── one")
    assert shown == (
        "Adds two.\n\n```python\n>>> 1 + 1\n2\n```\n\nRaises `ValueError`.\n\n```text\nErrors\n├── one\n```"
    )


def test_pictures_are_few_and_small_and_each_is_shown():
    pages = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs").rglob("*.md") if "results" not in p.parts)
    assert len(PICTURES) <= 12
    for picture in PICTURES:
        assert picture.stat().st_size <= 150_000
        assert re.search(rf"pictures/{re.escape(picture.name)}\)", pages), picture.name
