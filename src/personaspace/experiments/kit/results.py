"""What an experiment ends in: a table, figures, one page, and a line that sets its figure beside the published one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from personaspace.experiments.kit.trials import Trials
from personaspace.files import plain, write_table, write_whole
from personaspace.report.page import Block, Figure, Page


@dataclass(frozen=True)
class Result:
    """page: what is shown. headline: the figure beside the published one, as a sentence or two. figures: the numbers, as plain
    values or dataclasses. rows: one a reply, or whatever was counted."""

    page: Page
    headline: str
    figures: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @property
    def lead(self) -> str:
        """What was done, as it stands at the page's head."""
        return self.page.lead

    @property
    def key(self) -> Sequence[Figure]:
        """The few figures that stand large at the page's head."""
        return self.page.key

    @property
    def blocks(self) -> Sequence[Block]:
        """The page's sections."""
        return self.page.blocks


def write_result(trials: Trials[Any], result: Result) -> None:
    """Writes `results.parquet`, `results.json` and `report.html` into the experiment's folder, each whole or not at all."""
    write_table(trials.folder / "results.parquet", pa.Table.from_pylist([dict(r) for r in result.rows]))
    values = {
        "experiment": trials.name,
        "model": trials.engine.info.id,
        "layer": trials.space.layer,
        "options": trials.options.model_dump(mode="json"),
        "title": result.page.title,
        "headline": result.headline,
        "key": plain(result.key),
        "figures": plain(result.figures),
    }
    write_whole(trials.folder / "results.json", json.dumps(values, indent=1, ensure_ascii=False).encode())
    result.page.write(trials.report_file, said=result.headline)
