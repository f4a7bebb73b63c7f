"""What `project` prints of a folder of conversations: one table, and where its page is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from personaspace.cli.common import err, out
from personaspace.cli.progress import Bar
from personaspace.cli.tables import print_uncut

if TYPE_CHECKING:
    from personaspace.engines import Engine
    from personaspace.engines.thoughts import Part
    from personaspace.formats.transcript_folders import TranscriptFolder
    from personaspace.space import PersonaSpace


def print_folder(
    path: Path,
    folder: TranscriptFolder,
    space: PersonaSpace,
    engine: Engine,
    *,
    plot: Path | None,
    false_alarms: float,
    alert_turns: int,
    span: Part,
    tokens: bool,
    as_json: bool,
) -> None:
    """Reads the folder, writes its page (called after it unless `plot` says where) and prints its table."""
    from personaspace.holding.folder_page import sentences, table, write_folder
    from personaspace.holding.transcript_folders import project_folder

    reading = project_folder(
        engine, space, folder, false_alarms=false_alarms, alert_turns=alert_turns, span=span, watcher=Bar(err)
    )
    for note in reading.notes:
        err.print(note)
    name = path.resolve().name
    page = write_folder(plot or Path(f"{name}.html"), name, space, reading)
    if as_json:
        out.print_json(json.dumps({"layer": space.layer, **reading.to_dict(tokens), "page": str(page)}))
        return
    head, rows = table(reading)
    print_uncut(head, rows)
    out.print()
    for sentence in sentences(reading):
        out.print(sentence)
    out.print(f"page: {page}")
