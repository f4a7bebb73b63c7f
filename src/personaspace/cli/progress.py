"""Shows a map's progress: one bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from personaspace.report.words import duration
from personaspace.watcher import Plan, Watcher

LINE_EVERY = 15.0
"""Seconds between plain lines."""

FIRST_ROWS = 100
"""Replies that start together end together: before that many, a rate says little."""


class Bar(Watcher):
    """A watcher for the command line."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.began = self.last = time.monotonic()
        self.first = self.done = self.total = 0
        self.done_at = self.began
        self.forecast: float | None = None
        self.unit = "responses"

    def line(self, plan: Plan) -> str:
        """The plan in one line."""
        done_note = f" ({plan.done} of them there already)" if plan.done else ""
        generated = f", at most {plan.new_tokens:,} new ones" if plan.new_tokens else ", nothing generated"
        # An engine elsewhere is not timed beforehand: no time is better than 0 s.
        unknown = "for a time that shows once it runs"
        duration_note = unknown if plan.seconds is None else f"about {duration(max(1.0, plan.seconds))}"
        return (
            f"{plan.responses} {plan.what}{done_note}: {plan.prompt_tokens:,} prompt tokens{generated}, "
            f"{duration_note if plan.done < plan.responses else 'nothing left to do'}, {plan.bytes / 1e6:,.0f} MB on the disk"
        )

    def planned(self, plan: Plan) -> None:
        self.console.print(self.line(plan))
        self.began, self.first, self.unit = time.monotonic(), plan.done, plan.what
        self.done, self.total, self.done_at, self.forecast = plan.done, plan.responses, self.began, plan.seconds
        if not self.console.is_terminal:
            return
        if self.bar is None:
            rate = TextColumn("{task.fields[rate]}")
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, _Left(self))
            self.bar = Progress(*columns, console=self.console)
            self.bar.start()
        self.task = self.bar.add_task(plan.what, total=plan.responses, completed=plan.done, rate="")

    def progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        self.done, self.total, self.done_at = done, total, now
        rate = (done - self.first) / max(1e-9, now - self.began)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=total, rate=f"{rate:.1f}/s")
        elif now - self.last > LINE_EVERY and (left := self.left()) is not None:
            self.last = now
            self.console.print(f"{done}/{total} {self.unit}, {rate:.1f}/s, {duration(left)} left")

    def left(self) -> float | None:
        """Seconds that it will still take: at first by the forecast, and the more is done, by how long that took. None where
        neither says anything yet."""
        now, new = time.monotonic(), self.done - self.first
        if self.forecast is None and new < FIRST_ROWS:
            return None
        # Replies come in bursts: what the last one showed stands until the next.
        shown = (self.done_at - self.began) / new * (self.total - self.first) if new else 0.0
        weight = 1.0 if self.forecast is None else min(1.0, new / max(1, min(FIRST_ROWS, self.total - self.first)))
        return max(0.0, weight * shown + (1 - weight) * (self.forecast or 0.0) - (now - self.began))

    def note(self, text: str) -> None:
        self.console.print(text)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()


class _Left(ProgressColumn):
    """The time that is left, as the watcher has it."""

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self.of = bar

    def render(self, task: Task) -> Text:
        """Empty until something is known, and where all is done."""
        left = None if task.finished else self.of.left()
        return Text("" if left is None else f"{duration(left)} left", style="progress.remaining")
