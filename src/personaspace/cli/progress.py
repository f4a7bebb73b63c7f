"""Shows a map's progress: one bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from personaspace.report.words import duration
from personaspace.watcher import Plan, Watcher

LINE_EVERY = 15.0
"""Seconds between plain lines."""

FIRST_ROWS = 100
"""Replies that start together end together: before that many, a rate would say nothing."""


class Bar(Watcher):
    """A watcher for the command line."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.began = self.last = time.monotonic()
        self.first = 0
        self.unit = "responses"

    def line(self, plan: Plan) -> str:
        """The plan in one line."""
        done_note = f" ({plan.done} of them there already)" if plan.done else ""
        generated = f", at most {plan.new_tokens:,} new ones" if plan.new_tokens else ", nothing generated"
        # An engine elsewhere is not timed beforehand: no time is better than 0 s.
        duration_note = f"about {duration(plan.seconds)}" if plan.seconds else "for a time that shows once it runs"
        return (
            f"{plan.responses} {plan.what}{done_note}: {plan.prompt_tokens:,} prompt tokens{generated}, "
            f"{duration_note if plan.done < plan.responses else 'nothing left to do'}, {plan.bytes / 1e6:,.0f} MB on the disk"
        )

    def planned(self, plan: Plan) -> None:
        self.console.print(self.line(plan))
        self.began, self.first, self.unit = time.monotonic(), plan.done, plan.what
        if not self.console.is_terminal:
            return
        if self.bar is None:
            rate = TextColumn("{task.fields[rate]}")
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.bar.start()
        self.task = self.bar.add_task(plan.what, total=plan.responses, completed=plan.done, rate="")

    def progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        rate = (done - self.first) / max(1e-9, now - self.began)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=total, rate=f"{rate:.1f}/s")
        elif now - self.last > LINE_EVERY and done - self.first >= FIRST_ROWS:
            self.last = now
            self.console.print(
                f"{done}/{total} {self.unit}, {rate:.1f}/s, {duration((total - done) / max(rate, 1e-9))} left"
            )

    def note(self, text: str) -> None:
        self.console.print(text)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
