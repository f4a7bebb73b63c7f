"""A conversation in the terminal: replies as they are made, and after each where it lies on the axis."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from personaspace.engines import LocalEngine
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.errors import PersonaSpaceError, UsageError
from personaspace.files import write_whole
from personaspace.formats.vectors import directions_of
from personaspace.holding.monitor import AlertRule, Monitor, TurnReading
from personaspace.model.interventions import Intervention
from personaspace.space import PersonaSpace

WIDTH = 41
HELP = """/cap [NAME]       hold replies with a cap of the space; /cap off lets go
/steer ALPHA [TO] steer along the axis (or towards a role); positive is towards the Assistant; /steer off
/along [NAME ...]  read replies along traits, roles or files of vectors as well; /along off
/role [NAME|TEXT] a new conversation with a role of the space, or with a system prompt of yours; /role off
/compare          the next reply twice: as it is, and with the cap
/save FILE        the conversation as JSON, with its readings
/help, /quit"""


@dataclass
class ChatSession:
    """A conversation with a model, what holds it, and what its turns read."""

    engine: LocalEngine
    space: PersonaSpace
    sampling: Sampling
    console: Console
    rule: AlertRule | None = None
    cap: str | None = None
    steer: tuple[float, str] | None = None
    instruction: Callable[[str], str | None] = lambda _: None
    messages: list[dict[str, str]] = field(default_factory=list)
    compare: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self.monitor = Monitor(self.space, self.rule)
        self.interventions(self.cap)

    def interventions(self, cap: str | None) -> tuple[Intervention, ...]:
        """What is done to a reply under a cap. Raises `SpaceError` for one that does not exist."""
        return self.space.interventions(cap or None, [self.steer] if self.steer else [])

    def say(self, text: str) -> None:
        """Answers the user, streaming, and shows the gauge; in a comparison twice, the second reply being kept."""
        self.messages.append({"role": "user", "content": text})
        try:
            reply = self._answer()
        except BaseException:  # what got no reply was not said
            self.messages.pop()
            self.monitor.drop_turn()
            raise
        self.messages.append({"role": "assistant", "content": reply})
        self.seed += 1

    def _answer(self) -> str:
        if not self.compare:
            return self._reply(self.cap, self.monitor, "")
        self.compare = False
        cap = self.cap or "capped"
        self._reply(None, Monitor(self.space, along=self.monitor.along), "as it is")
        return self._reply(cap, self.monitor, cap)

    def _reply(self, cap: str | None, monitor: Monitor, label: str) -> str:
        prompt = Prompt(tuple(self.messages), seed=self.seed)
        if label:
            self.console.print(f"[{label}]", style="bold", markup=False)
        text, touched, thought = "", 0, False
        stream = self.engine.stream(
            prompt, self.sampling, read=[self.space.layer], interventions=self.interventions(cap)
        )
        for token in stream:
            if token.thinking:
                self.console.print(token.thinking, end="", style="dim", markup=False, highlight=False)
            elif token.text and thought and not text:
                self.console.print("\n")
            self.console.print(token.text, end="", markup=False, highlight=False)
            thought = thought or bool(token.thinking)
            text += token.text
            touched += token.touched and token.is_answer
            if token.activation is not None and token.is_answer:
                monitor.feed(token.activation[0])
        self.console.print()
        reading = monitor.end_turn(len(self.messages))
        if reading:
            self.console.print(gauge(self.space, reading, touched))
            for line in along_gauges(reading):
                self.console.print(line)
        return text

    def command(self, line: str) -> bool:
        """Does what a line that begins with / says; false where it ends the conversation. Raises `UsageError`."""
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if name in ("quit", "exit", "q"):
            return False
        if name == "cap":
            cap = None if rest == "off" else rest or "capped"
            self.interventions(cap)
            self.cap = cap
            self.console.print(f"cap: {cap or 'off'}", style="dim", markup=False)
        elif name == "steer":
            self._steer(rest)
        elif name == "role":
            self._role(rest)
        elif name == "along":
            self._along(rest)
        elif name == "compare":
            self.interventions(self.cap or "capped")
            self.compare = True
            self.console.print("the next reply: as it is, then capped", style="dim")
        elif name == "save":
            self._save(rest)
        elif name == "help":
            self.console.print(HELP, markup=False)
        else:
            raise UsageError(f"/{name}: no such command; /help lists them")
        return True

    def _steer(self, rest: str) -> None:
        before = self.steer
        if rest in ("", "off"):
            self.steer = None
        else:
            alpha, _, to = rest.partition(" ")
            try:
                self.steer = (float(alpha), to.strip() or "axis")
            except ValueError:
                raise UsageError(f"/steer {rest}: expected a number, as /steer -0.3, and a role if you like") from None
        try:
            self.interventions(None)
        except PersonaSpaceError:
            self.steer = before
            raise
        present = "off" if self.steer is None else f"{self.steer[0]:+g} along {self.steer[1]}"
        self.console.print(f"steering: {present}", style="dim", markup=False)

    def _along(self, rest: str) -> None:
        names: list[str] = []
        if rest not in ("", "off"):
            self.space, names = directions_of(self.space, rest.replace(" ", ","))
        self.monitor.along = self.space.along(names)
        self.console.print(f"along: {', '.join(names) or 'off'}", style="dim", markup=False)

    def _role(self, rest: str) -> None:
        system = None if rest in ("", "off") else self.instruction(rest) or rest
        self.messages = [{"role": "system", "content": system}] if system else []
        self.monitor = Monitor(self.space, self.rule, self.monitor.along)
        self.console.print(f"a new conversation: {system or 'no system prompt'}", style="dim", markup=False)

    def _save(self, rest: str) -> None:
        if not rest:
            raise UsageError("/save: expected a file's name, as /save talk.json")
        turns = [r.to_dict() for r in self.monitor.readings]
        data = {"model": self.engine.info.id, "cap": self.cap, "messages": self.messages, "turns": turns}
        write_whole(Path(rest), json.dumps(data, indent=1, ensure_ascii=False).encode())
        self.console.print(f"saved: {rest}", style="dim", markup=False)


def gauge(space: PersonaSpace, reading: TurnReading, touched: int = 0) -> Text:
    """A turn as one line: where it lies from three standard deviations away from the default to one beyond it."""
    nearest = ", ".join(name for name, _ in reading.nearest[:3])
    if reading.drift is None:
        return Text(f"projection {reading.projection:.1f}, near {nearest}", style="dim")
    place = round((3 - max(-1.0, min(3.0, reading.drift))) / 4 * (WIDTH - 1))
    home = round(3 / 4 * (WIDTH - 1))
    cells = ["│" if k == home else "─" for k in range(WIDTH)]
    cells[place] = "●"
    capped = f", {touched} of {reading.tokens} tokens held" if touched else ""
    colour = "red" if reading.alert else "yellow" if reading.drift > 1 else "green"
    alert = "  ALERT" if reading.alert else ""
    line = f"away {''.join(cells)} Assistant  drift {reading.drift:+.1f} sd, near {nearest}{capped}{alert}"
    return Text(line, style=colour)


def converse(session: ChatSession, read: Callable[[], str | None]) -> None:
    """Talks until the user has had enough; a mistake is one line, and the conversation goes on."""
    while True:
        try:
            line = read()
            if line is None:
                return
            line = line.strip()
            if line.startswith("/"):
                if not session.command(line):
                    return
            elif line:
                session.say(line)
        except PersonaSpaceError as e:
            session.console.print(f"{e}", style="red", markup=False)


def along_gauges(reading: TurnReading) -> list[Text]:
    """A turn on each further direction as a line: from three standard deviations below the default's mean to three above."""
    lines = []
    for name, place in reading.along.items():
        if place.shift is None:
            lines.append(Text(f"{name}: projection {place.projection:.1f}", style="dim"))
            continue
        cells = ["│" if k == WIDTH // 2 else "─" for k in range(WIDTH)]
        cells[round((max(-3.0, min(3.0, place.shift)) + 3) / 6 * (WIDTH - 1))] = "●"
        colour = "yellow" if abs(place.shift) > 1 else "green"
        lines.append(Text.assemble(("".join(cells), colour), (f"  {name} {place.shift:+.2f}", "dim")))
    return lines
