"""Conversations on disk, where that was asked for: readable by whoever runs the server, and by nobody else."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from personaspace.files import reason_of

log = logging.getLogger("personaspace.serve")


def append_private(path: Path, text: str) -> None:
    """Adds to a file; one that is not there yet is made with mode 0600. Raises `OSError`."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as f:
        f.write(text)


class Record:
    """A JSONL file of conversations; none where no path is given."""

    def __init__(self, path: Path | None) -> None:
        self.path, self._failed = path, False

    def add(self, model: str, messages: list[dict[str, str]], replies: list[dict[str, Any]]) -> None:
        """Writes a conversation down. A failure is logged once: the reply is made, and who asked for it gets it."""
        if self.path is None:
            return
        try:
            append_private(self.path, json.dumps({"model": model, "messages": messages, "replies": replies}) + "\n")
        except OSError as e:
            if not self._failed:
                log.error("%s: conversations are not written: %s", self.path, reason_of(e))
            self._failed = True
