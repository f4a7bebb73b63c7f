"""Writes docs/licences.md: what personaspace and each of its extras require, all the way down, and under which licence.

    make licences

What is listed is what is installed where this runs, by its own metadata; what is not installed is named at the end.
"""

from __future__ import annotations

import platform
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "licences.md"
SHARED_BACK = re.compile(r"\b(A?L?GPL|MPL|EPL|EUPL|CDDL|Mozilla|GNU)", re.IGNORECASE)
"""Licences that ask for changes to the package itself to be shared under them, too."""


def licence_of(package: Distribution) -> str:
    """As its metadata states it: the expression, or else a licence's name, the classifiers, the title of the licence's text."""
    if expression := package.metadata.get("License-Expression"):
        return expression
    classifiers = [
        c.split(" :: ")[-1] for c in package.metadata.get_all("Classifier") or [] if c.startswith("License ::")
    ]
    text = (package.metadata.get("License") or "").strip()
    if text and "\n" not in text and text not in ("UNKNOWN", "Dual License"):
        return text
    if classifiers:
        return " or ".join(classifiers)
    head = text.split("\n")[0].strip()
    if len(head) < 40 and re.search("licen[cs]e", head, re.IGNORECASE):
        return head
    return "not stated; a licence's text comes with it" if package.metadata.get_all("License-File") else "not stated"


def required(wanted: Iterable[Requirement]) -> tuple[dict[str, Distribution], set[str]]:
    """Every package that these requirements bring, by name, and the names of those that are not installed."""
    installed: dict[str, Distribution] = {}
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = list(wanted)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras} - {extra for done, extra in seen if done == name}
        if not extras or name == "personaspace":
            continue
        seen |= {(name, extra) for extra in extras}
        try:
            installed[name] = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        for line in installed[name].requires or []:
            below = Requirement(line)
            if any(below.marker is None or below.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(below)
    return installed, missing


def page() -> str:
    """The page's text."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    alone, absent = required(map(Requirement, project["dependencies"]))
    groups = {"personaspace alone": alone}
    for extra, lines in project["optional-dependencies"].items():
        packages, missing = required(map(Requirement, lines))
        groups[f"personaspace[{extra}] adds"] = {name: p for name, p in packages.items() if name not in alone}
        absent |= missing
    everything = {name: p for packages in groups.values() for name, p in packages.items()}
    shared_back = sorted(name for name, p in everything.items() if SHARED_BACK.search(licence_of(p)))
    unstated = sorted(name for name, p in everything.items() if licence_of(p).startswith("not stated"))
    parts = [
        "# Licences of what is required",
        f"Made by `make licences` from the metadata of what is installed on {platform.system()} with Python "
        f"{sys.version_info.major}.{sys.version_info.minor}, requirements of requirements included; other versions may have "
        "other licences. personaspace itself is MIT and ships none of these packages. "
        "The model `smollm2`, SmolLM2-135M-Instruct, is Apache-2.0.",
        f"Changes to the package itself are to be shared under its licence: {', '.join(shared_back) or 'none'}. "
        f"Metadata that names no licence: {', '.join(unstated) or 'none'}. "
        f"Not installed where this was made, and so not listed: {', '.join(sorted(absent)) or 'none'}.",
    ]
    for title, packages in groups.items():
        rows = [f"| {p.metadata['Name']} | {p.version} | {licence_of(p)} |" for _, p in sorted(packages.items())]
        table = ["| package | version | licence |", "| --- | --- | --- |", *rows]
        parts += [f"## {title}", "\n".join(table) if rows else "Nothing."]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
