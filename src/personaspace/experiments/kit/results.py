"""What an experiment ends in: a table, figures, one page, and a line that sets its figure beside the published one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from personaspace.experiments.kit.trials import Trials
from personaspace.files import plain, write_table, write_whole
from personaspace.report.page import Block, Figure, write_figures


@dataclass(frozen=True)
class Result:
    """title, lead: of the page. headline: the figure beside the published one, as a sentence or two. figures: the numbers, as
    plain values or dataclasses. rows: one a reply, or whatever was counted. key: the few that stand large at the page's head.
    """

    title: str
    lead: str
    headline: str
    figures: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    blocks: Sequence[Block]
    key: Sequence[Figure] = field(default=())


def write_result(trials: Trials[Any], result: Result) -> None:
    """Writes `results.parquet`, `results.json` and `report.html` into the experiment's folder, each whole or not at all."""
    write_table(trials.folder / "results.parquet", pa.Table.from_pylist([dict(r) for r in result.rows]))
    values = {
        "experiment": trials.name,
        "model": trials.engine.info.id,
        "layer": trials.space.layer,
        "options": trials.options.model_dump(mode="json"),
        "title": result.title,
        "headline": result.headline,
        "key": plain(result.key),
        "figures": plain(result.figures),
    }
    write_whole(trials.folder / "results.json", json.dumps(values, indent=1, ensure_ascii=False).encode())
    write_figures(trials.report_file, result.title, result.lead, result.blocks, said=result.headline, key=result.key)
