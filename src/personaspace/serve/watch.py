"""What a server looks at beside the axis: the directions that replies are read along, alerts by name, and what is done once one
was raised. It remembers no conversation: what came before is what a request says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from torch import Tensor

from personaspace.errors import SpaceError, UsageError
from personaspace.holding.alerts import NamedAlert, parse_alerts
from personaspace.serve.refusals import BadRequest
from personaspace.serve.settings import WatchSettings
from personaspace.serve.types import MOST_READ, Persona
from personaspace.space import PersonaSpace
from personaspace.space.directions import AXIS, Along, Direction
from personaspace.space.holds import ON_ALERT

RECOMMENDED = "capped"
"""The cap that holds from an alert on where none is named."""


Act = Literal["cap", "stop"]
STOPPED = "An alert was raised earlier in this conversation, and the server ends it there; begin a new one"


@dataclass(frozen=True)
class WatchedReply:
    """A whole reply as it lies. persona: what its client is told; along: where it lies on the directions that the server was
    started with; begun: the alerts that began with it, and `figures` what each looked at."""

    persona: dict[str, Any]
    along: Mapping[str, Along]
    begun: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Watch:
    """The directions and alerts of a server. read: names that replies are read along unless a request says which; alerts: the
    axis' first, where there is one."""

    space: PersonaSpace
    settings: WatchSettings
    alerts: tuple[NamedAlert, ...]
    _by_name: dict[str, Direction] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, space: PersonaSpace, settings: WatchSettings) -> Watch:
        """Raises `SpaceError` for a name that the space lacks, `UsageError` for an alert that cannot be, or none to act on."""
        watch = cls(space, settings, tuple(parse_alerts(space, settings.alerts)))
        if len(watch.names) > MOST_READ:
            raise UsageError(f"{len(watch.names)} directions to read and to alert on; at most {MOST_READ} are taken")
        if settings.on_alert != "tell" and not watch.alerts:
            raise UsageError(
                f"nothing raises the alert on which to {settings.on_alert}: this space has no rule for one"
            )
        if settings.on_alert == "cap" and RECOMMENDED not in space.caps:
            raise UsageError(f"no cap to hold by on an alert: this space has no cap {RECOMMENDED!r}; calibrate it")
        return watch

    @property
    def _alerted(self) -> list[str]:
        return [alert.name for alert in self.alerts if alert.name != AXIS]

    @property
    def names(self) -> list[str]:
        """The directions that the server was started with: of metrics, and of what every reply tells unless asked otherwise."""
        return list(dict.fromkeys([*(self.direction(name).name for name in self.settings.read), *self._alerted]))

    def direction(self, name: str) -> Direction:
        """One of the space's directions. Raises `SpaceError`."""
        if name not in self._by_name:
            (self._by_name[name],) = self.space.along([name])
        return self._by_name[name]

    def check(self, persona: Persona, cap: str | None) -> None:
        """That a request's directions are there, and an alert where one is to act. Raises `BadRequest`."""
        for param, names in (("persona.read", persona.read or ()), ("persona.histories", persona.histories)):
            try:
                for name in names:
                    self.direction(name)
            except SpaceError as e:
                raise BadRequest(str(e), param) from None
        if persona.on_alert not in (None, "tell") and not self.alerts:
            raise BadRequest(
                f"Nothing raises the alert on which to {persona.on_alert}: this server has no rule for one",
                "persona.on_alert",
            )
        if persona.on_alert == "cap" and cap is None and RECOMMENDED not in self.space.caps:
            raise BadRequest(f"This space has no cap {RECOMMENDED!r} to hold by on an alert", "persona.on_alert")

    def started(self, mean: Tensor) -> dict[str, Along]:
        """Where a reply's mean `[hidden]` lies along the directions that the server was started with, whoever asks."""
        return self._read(mean, self.names)

    def along(self, mean: Tensor, read: Sequence[str]) -> dict[str, Along]:
        """Where it lies along what a request names, and what the server alerts on in any case."""
        return self._read(mean, [*read, *self._alerted])

    def _read(self, mean: Tensor, names: Sequence[str]) -> dict[str, Along]:
        directions = {direction.name: direction for direction in map(self.direction, names)}
        return {name: direction.read(mean) for name, direction in directions.items()}

    def _history(self, alert: NamedAlert, persona: Persona) -> list[float]:
        """The shifts of earlier turns that an alert looks at."""
        if alert.name == AXIS:
            return [-drift for drift in persona.history]
        by_name = {self.direction(name).name: shifts for name, shifts in persona.histories.items()}
        return by_name.get(alert.name, [])

    def raised(self, persona: Persona) -> bool:
        """Whether an alert was raised at any turn that the request tells of. It is not taken back: once a reply is held, where
        it lies says nothing of where the model would go by itself."""
        each = (alert.standing(self.space, self._history(alert, persona)) for alert in self.alerts)
        return any(chain.from_iterable(each))

    def act(self, persona: Persona, cap: str | None) -> Act | None:
        """What is done to a request, since an alert was raised before it. cap: what it is held by in any case, or, as
        `capped+alert`, from then on."""
        on_alert = persona.on_alert or self.settings.on_alert
        waits = waits_for_alert(self.space, cap)
        if waits and on_alert == "tell":
            on_alert = "cap"
        if on_alert == "tell" or (on_alert == "cap" and cap is not None and not waits):
            return None
        return on_alert if self.raised(persona) else None

    def judged(self, shifts: Mapping[str, float], persona: Persona) -> tuple[dict[str, bool], tuple[str, ...]]:
        """Which alerts stand after a reply of such shifts, and which of them began with it."""
        standing, begun = {}, []
        for alert in self.alerts:
            if alert.name not in shifts:
                continue
            history = self._history(alert, persona)
            *before, now = alert.standing(self.space, [*history, shifts[alert.name]])
            standing[alert.name] = now
            if now and not (before and before[-1]):
                begun.append(alert.name)
        return standing, tuple(begun)

    def message(self, reply: WatchedReply, persona: Persona) -> dict[str, Any]:
        """What a receiver of alerts is told of a reply with which some began: figures, and nothing that anybody said."""
        begun = [alert for alert in self.alerts if alert.name in reply.begun]
        return {
            "alerts": [
                {"name": a.name, "shift": reply.figures[a.name], "threshold": a.rule.threshold, "turns": a.rule.turns}
                for a in begun
            ],
            "turn": 1 + max(len(self._history(alert, persona)) for alert in begun),
            "tokens_read": reply.persona["tokens_read"],
        }

    def describe(self) -> dict[str, Any]:
        """The part of a space's description for choosing what to read, and for how alerts are meant."""
        return {
            "directions": self.space.directions,
            "read": self.names,
            "alerts": [
                {
                    "name": alert.name,
                    "below": alert.below,
                    "threshold": alert.rule.threshold,
                    "turns": alert.rule.turns,
                    "rate": alert.rule.rate,
                    "is": str(alert),
                }
                for alert in self.alerts
            ],
            "on_alert": self.settings.on_alert,
        }


def waits_for_alert(space: PersonaSpace, cap: str | None) -> bool:
    """Whether a cap's name asks that it holds from an alert on."""
    return cap is not None and cap not in space.caps and cap.endswith(ON_ALERT)
