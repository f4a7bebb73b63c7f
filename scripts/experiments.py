"""Maps a model, runs every experiment at its small setting, and writes what was found into docs/results/: pages, figures,
numbers, and a summary (`results_page`) in which each figure has its command, its interval and the study's figure beside it.

What was run is gone on with, so that a second call only writes. Pages share one copy of the plotting library there; Chromium
draws the figures for the summary.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import results_page
from plotly.offline import get_plotlyjs
from results_page import MAP, OTHER_MAP, Measured

from personaspace.experiments.registry import EXPERIMENTS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
COMMAND = Path(sys.executable).with_name("personaspace")
QUICKSTART = ("--per-role", "1", "--default-responses", "300", "--max-new-tokens", "32")
"""As `make quickstart` maps; `tests/test_figures.py` holds it to that."""
OTHER = "base-model-other"
WIDTH = 1080
PATIENCE = 300_000
"""Milliseconds for a page to be drawn on a machine that is busy."""


def from_root(argument: str | Path) -> str:
    """An argument as it is passed in the repository's folder: what lies there without the way to it, which pages would name."""
    path = Path(argument)
    return str(path.relative_to(ROOT)) if path.is_absolute() and path.is_relative_to(ROOT) else str(argument)


def typed(arguments: Sequence[str | Path]) -> str:
    """A call of ours as a user types it in the repository: no path of this machine."""
    names = [Path(name).name if Path(name).is_absolute() else name for name in map(from_root, arguments)]
    return shlex.join(["personaspace", *names])


def called(arguments: Sequence[str | Path], capture: bool = False) -> str:
    """Runs the command line, and returns what it printed where that is wanted."""
    print(f"== {typed(arguments)}", flush=True)
    line = [str(COMMAND), *map(from_root, arguments)]
    return subprocess.run(line, check=True, cwd=ROOT, text=True, stdout=subprocess.PIPE if capture else None).stdout


def mapped(model: str, run: Path) -> Measured:
    """The quickstart's map, made where it is not there, and its figures."""
    making: list[str | Path] = ["map", model, "--out", run, *QUICKSTART]
    if not (run / "space.safetensors").exists():
        called(making)
    return shown(run, f"{typed(making)} && {typed(['show', run, '--json'])}", "The quickstart's map")


def shown(space: Path, command: str, title: str) -> Measured:
    """A space's figures."""
    return results_page.of_map(json.loads(called(["show", space, "--json"], capture=True)), command, title)


def conducted(space: str, runs: Path, base: str | None) -> dict[str, tuple[Path, str]]:
    """Name → folder and command of every experiment, run or gone on with. base: another base model, beside the stand-in."""
    every: list[tuple[str, str, list[str]]] = [(name, name, []) for name in EXPERIMENTS]
    if base:
        every.append((OTHER, "base-model", ["--base", base]))
    folders = {}
    for name, experiment, more in every:
        arguments: list[str | Path] = ["experiment", experiment, space, "--out", runs / name, *more]
        called(arguments)
        folders[name] = (runs / name, typed(arguments))
    return folders


def light(page: str) -> str:
    """A page that reads the plotting library from beside it."""
    return page.replace(f"<script>{get_plotlyjs()}</script>", '<script src="../plotly.min.js"></script>')


def drawn(pages: dict[str, Path]) -> None:
    """Each page's first figure as a picture beside it."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": WIDTH, "height": 900})
        view.set_default_timeout(PATIENCE)
        for page in pages.values():
            view.goto(page.as_uri())
            figure = view.locator(".plot").first
            figure.locator(".main-svg").first.wait_for()
            figure.screenshot(path=page.with_suffix(".png"))
        browser.close()


def measurement(folder: Path, command: str) -> tuple[Measured, dict[str, Any]]:
    """What an experiment found, and its `results.json` with the seconds that it took."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if base := results["options"].get("base"):
        results["options"]["base"] = Path(base).name  # no path of this machine
    results["seconds"] = json.loads((folder / "run.json").read_text(encoding="utf-8"))["seconds"]
    fields = {name: results[name] for name in ("title", "key", "figures", "headline", "seconds")}
    return Measured(command=command, **fields), results


def main() -> None:
    """Runs all, and writes docs/results/DATE/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("space", nargs="?", default="smollm2")
    parser.add_argument("--map", type=Path, default=ROOT / "runs" / "smollm2", help="the quickstart's run")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "experiments")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--base", help="another base model, to do base-model with as well")
    parser.add_argument("--base-name", default="Gemma 3 270M base", help="what the page calls it")
    options = parser.parse_args()
    run, runs = options.map.resolve(), options.runs.resolve()
    found: dict[str, Measured] = {MAP: mapped("smollm2", run)}
    folders = conducted(options.space, runs, options.base)
    date = datetime.date.today().isoformat()
    target = options.results.resolve() / date
    target.mkdir(parents=True, exist_ok=True)
    (options.results / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    model = ""
    for name, (folder, command) in folders.items():
        found[name], results = measurement(folder, command)
        model = model or results["model"]
        (target / f"{name}.json").write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
        (target / f"{name}.html").write_text(light((folder / "report.html").read_text("utf-8")), encoding="utf-8")
    if OTHER in folders:
        folder, command = folders[OTHER]
        more = f"{command} && {typed(['show', folder / 'base', '--json'])}"
        found[OTHER_MAP] = shown(folder / "base", more, f"{options.base_name}, mapped by that experiment")
    comparing: list[str | Path] = ["compare", options.space, folders["base-model"][0] / "base"]
    (pair,) = json.loads(called([*comparing, "--out", target / "compare.html", "--json"], capture=True))["pairs"]
    found["compare"] = results_page.of_pair(pair, typed(comparing))
    (target / "compare.html").write_text(light((target / "compare.html").read_text("utf-8")), encoding="utf-8")
    (target / "quickstart.html").write_text(light((run / "report.html").read_text("utf-8")), encoding="utf-8")
    pictures = [*folders, "compare"]
    base_name = options.base_name if options.base else ""
    text = results_page.page(date, model, base_name, found, pictures)
    (target / "README.md").write_text(text, encoding="utf-8")
    drawn({name: target / f"{name}.html" for name in pictures})
    print(f"written: {target / 'README.md'}")


if __name__ == "__main__":
    main()
