"""A hook of mkdocs and an extension of griffe (mkdocs.yml): brings pages from outside docs/ onto the site, mends links that
lead out of it, and shows docstrings' examples as code.

Files are named on the site as in the repository, less `docs/`. A link to a file that is not on the site, a test say, keeps its
text and goes nowhere: the site knows no repository's address.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

import griffe
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
BROUGHT = (
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "deploy/README.md",
    "deploy/Dockerfile",
    "deploy/space.Dockerfile",
    "deploy/personaspace.service",
    "deploy/grafana.json",
)
DECISIONS = "decisions/index.md"
LINK = re.compile(r"\[([^\]\n]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
CODE = re.compile(r">>> |[├└]── ")
"""What a paragraph of a docstring has that is an example, or a tree."""


class ExamplesAsCode(griffe.Extension):
    """Examples (`>>> …`) and trees in docstrings are fenced: as they stand, Markdown takes them for quotations and links."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """A docstring as Markdown has it."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(docstring: str) -> str:
    """A docstring with each paragraph that is an example or a tree between fences.

    >>> fenced("Adds.\\n\\n>>> 1 + 1\\n2")
    'Adds.\\n\\n```python\\n>>> 1 + 1\\n2\\n```'
    """
    paragraphs = docstring.split("\n\n")
    languages = ["python" if ">>> " in text else "text" for text in paragraphs]
    return "\n\n".join(
        f"```{language}\n{text}\n```" if CODE.search(text) else text
        for language, text in zip(languages, paragraphs, strict=True)
    )


def on_files(files: Files, config: Any) -> Files:
    """Adds what stands outside docs/, and a page that lists the decisions."""
    for name in BROUGHT:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    titles = [(path.name, path.read_text(encoding="utf-8").split("\n")[0].lstrip("# ")) for path in _decisions()]
    listed = "\n".join(f"- [{title}]({name})" for name, title in titles)
    text = f"# Decisions\n\nWhat was chosen, what else was tried, and the figure that decided.\n\n{listed}\n"
    files.append(File.generated(config, DECISIONS, content=text))
    return files


def _decisions() -> list[Path]:
    return sorted((ROOT / "docs" / "decisions").glob("*.md"))


def on_page_markdown(markdown: str, *, page: Page, config: Any, files: Files) -> str:
    """The page's text, its links as the site has them."""
    return mended(markdown, page.file.src_uri, {file.src_uri for file in files})


def on_post_page(output: str, *, page: Page, config: Any) -> str:
    """The page's HTML with a name for the theme's search, which has none for who cannot see it."""
    return output.replace('class="md-search"', 'class="md-search" aria-label="Search"')


def mended(markdown: str, page: str, on_site: set[str]) -> str:
    """A page's text with each link led to where its target is on the site. page: its own place there; on_site: all places.

    >>> mended("[why](../SECURITY.md), [a test](../tests/test_docs.py)", "server.md", {"SECURITY.md"})
    '[why](SECURITY.md), a test'
    """
    here = page if page in BROUGHT else f"docs/{page}"

    def led(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = normpath(join(dirname(here), target))
        place = DECISIONS if path == "docs/decisions" else path.removeprefix("docs/")
        if place in on_site:
            return f"[{text}]({relpath(place, dirname(page) or '.')}{anchor})"
        # What is nowhere is left as it is, for mkdocs to complain of.
        return text if (ROOT / path).exists() else link[0]

    return LINK.sub(led, markdown)
