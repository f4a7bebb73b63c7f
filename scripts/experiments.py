"""Runs every experiment at its small setting, and writes what was found into docs/results/: pages, figures, numbers, a summary.

Pages share one copy of the plotting library there; Chromium draws the figures for the summary.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from personaspace.experiments.registry import EXPERIMENTS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
COMMAND = Path(sys.executable).with_name("personaspace")
WIDTH = 1080


def conducted(space: str, runs: Path, base: str | None) -> dict[str, Path]:
    """Name → folder of every experiment, run or gone on with. base: another base model, beside the stand-in."""
    wanted: list[tuple[str, str, list[str]]] = [(name, name, []) for name in EXPERIMENTS]
    if base:
        wanted.append(("base-model-other", "base-model", ["--base", base]))
    folders = {}
    for called, name, more in wanted:
        print(f"== {called}", flush=True)
        folders[called] = runs / called
        line = [COMMAND, "experiment", name, space, "--out", folders[called], *more]
        subprocess.run(line, check=True, cwd=ROOT)
    return folders


def compared(space: str, other: Path, page: Path) -> dict[str, Any]:
    """Two spaces set side by side: the figures, in the form that an experiment's results have."""
    line = [COMMAND, "compare", space, other.relative_to(ROOT), "--out", page, "--json"]
    (pair,) = json.loads(subprocess.run(line, check=True, capture_output=True, text=True, cwd=ROOT).stdout)["pairs"]
    told = {
        k: f"{pair[k]['value']:.2f} ({pair[k]['low']:.2f} to {pair[k]['high']:.2f})" for k in ("pc1", "axis", "ranking")
    }
    key = [
        {"name": "PC1 loadings", "value": told["pc1"], "note": "the study: above 0.92 between any two of its models"},
        {"name": "places on the axis", "value": told["axis"], "note": ""},
        {"name": "the ranking", "value": told["ranking"], "note": ""},
    ]
    said = f"{pair['shared']} roles in both: correlation of PC1 loadings {told['pc1']}. The study: above 0.92."
    return {"title": f"{pair['first']} beside {pair['second']}", "headline": said, "key": key}


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
        for page in pages.values():
            view.goto(page.as_uri())
            figure = view.locator(".plot").first
            figure.locator(".main-svg").first.wait_for()
            figure.screenshot(path=page.with_suffix(".png"))
        browser.close()


def summary(date: str, model: str, found: dict[str, dict[str, Any]]) -> str:
    """What was found, as one page of Markdown."""
    parts = [
        f"# {model}, {date}",
        "Every experiment at its small setting, by `make experiments`. The headline of each sets its figure beside the "
        "study's; intervals are 95%. The pages (`.html`) have every figure to point at, the `.json` every number.",
    ]
    for name, result in found.items():
        took = f" Took {result['seconds'] / 60:.1f} minutes." if "seconds" in result else ""
        rows = [f"| {k['name']} | {k['value']} | {k['note']} |" for k in result["key"]]
        parts += [
            f"## {name}: {result['title']}",
            result["headline"] + took,
            "\n".join(["| | | |", "| --- | --- | --- |", *rows]),
            f"![{result['title']}]({name}.png)",
            f"[The page]({name}.html)",
        ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Runs all, and writes docs/results/DATE/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("space", nargs="?", default="smollm2")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "experiments")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--base", help="another base model, to do base-model with as well")
    options = parser.parse_args()
    folders = conducted(options.space, options.runs, options.base)
    date = datetime.date.today().isoformat()
    target = options.results / date
    target.mkdir(parents=True, exist_ok=True)
    (options.results / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    found: dict[str, dict[str, Any]] = {}
    pages = {name: target / f"{name}.html" for name in (*folders, "compare")}
    for name, folder in folders.items():
        found[name] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        found[name]["seconds"] = json.loads((folder / "run.json").read_text(encoding="utf-8"))["seconds"]
        (target / f"{name}.json").write_text(json.dumps(found[name], indent=1, ensure_ascii=False), encoding="utf-8")
        pages[name].write_text(light((folder / "report.html").read_text(encoding="utf-8")), encoding="utf-8")
    found["compare"] = compared(options.space, folders["base-model"] / "base", pages["compare"])
    pages["compare"].write_text(light(pages["compare"].read_text(encoding="utf-8")), encoding="utf-8")
    drawn(pages)
    model = next(iter(found.values()))["model"]
    (target / "README.md").write_text(summary(date, model, found), encoding="utf-8")
    print(f"written: {target / 'README.md'}")


if __name__ == "__main__":
    main()
