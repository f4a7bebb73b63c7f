"""Who is told what a long call will take and how far it is; it knows nothing of what is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What reading a map's prompts or its replies will take. seconds: an estimate, None where nothing was measured
    (`mapping.pace`); bytes: an estimate; done counts what is there already. what: `prompts` or `responses`."""

    what: str
    responses: int
    done: int
    prompt_tokens: int
    new_tokens: int
    seconds: float | None
    bytes: int


class Watcher:
    """Is told what goes on; the command line shows it. Does nothing by itself.

    >>> class Notes(Watcher):
    ...     def note(self, text: str) -> None:
    ...         print(text)
    >>> options = {"roles": "ghost,bard,pirate", "read": "prompt", "until": "axis:0.5"}
    >>> space = ps.map("smollm2", "runs/watched", watcher=Notes(), **options)
    6 prompts: the axis' reliability at layer 20 is 0.7... (wanted 0.5)
    """

    def planned(self, plan: Plan) -> None:
        """Before the first response is asked for."""

    def progress(self, done: int, total: int) -> None:
        """After each response; done counts those of earlier calls."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Overall(Watcher):
    """Tells another of several calls' work together. total: of all of them."""

    def __init__(self, watcher: Watcher, total: int) -> None:
        self.watcher, self.total, self.count = watcher, total, 0

    def progress(self, done: int, total: int) -> None:
        self.count += 1
        self.watcher.progress(self.count, self.total)

    def note(self, text: str) -> None:
        self.watcher.note(text)
