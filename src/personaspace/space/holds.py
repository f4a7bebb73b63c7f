"""Ways of holding a model by a cap of its space, by name: `capped`, `capped+target`, `capped+mirror+answer`, …

    CAP[+target|+mirror][+generated|+answer][+half-life=TOKENS]

A cap alone lifts what lies under its floors to them. `target`: every projection is set to the mean of the default's replies
at that layer. `mirror`: what lies under a floor is mirrored to as far above it. `generated`, `answer`: not in the prompt, or
not in thoughts either. `half-life`: from a reply's first token on it weakens, to half after so many tokens. What acts on a
conversation as a whole (from an alert on) is no part of this: it takes somebody who follows the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from personaspace.errors import UsageError
from personaspace.model.interventions import Cap, Decaying, Mirror, SetTo, Where

Kind = Literal["cap", "target", "mirror"]
SEPARATOR, HALF_LIFE = "+", "half-life="
ON_ALERT = "+alert"
"""Behind all else, for who follows a conversation: from an alert on, and not before."""
PARTS = ("target", "mirror", "generated", "answer", f"{HALF_LIFE}TOKENS")


@dataclass(frozen=True)
class Hold:
    """cap: its name in the space. half_life: in tokens; None where it does not weaken."""

    cap: str
    kind: Kind = "cap"
    where: Where = "all"
    half_life: float | None = None

    @classmethod
    def parse(cls, name: str, caps: Collection[str]) -> Hold:
        """What a name says. A cap that is called so is taken as it is. Raises `UsageError`."""
        if name in caps or SEPARATOR not in name:
            return cls(name)
        # A cap's own name may have the separator in it.
        cap = max((c for c in caps if name.startswith(c + SEPARATOR)), key=len, default=name.split(SEPARATOR)[0])
        kind: Kind | None = None
        where: Where | None = None
        half_life: float | None = None
        for part in name.removeprefix(cap + SEPARATOR).split(SEPARATOR):
            if kind is None and part in ("target", "mirror"):
                kind = "target" if part == "target" else "mirror"
            elif where is None and part in ("generated", "answer"):
                where = "answer" if part == "answer" else "generated"
            elif half_life is None and part.startswith(HALF_LIFE):
                half_life = _tokens(name, part)
            else:
                raise UsageError(
                    f"{name}: {part!r}: expected {', '.join(PARTS)} behind a cap's name, each once at most"
                )
        return cls(cap, kind or "cap", where or ("all" if half_life is None else "generated"), half_life)

    def of(self, cap: Cap, default_mean: Callable[[int], float]) -> Cap | SetTo | Mirror | Decaying:
        """It, from the space's cap. default_mean: from a layer to the mean projection of the default's replies there."""
        held: Cap | SetTo | Mirror = cap
        if self.kind == "target":
            held = SetTo(cap.vector, cap.layers, tuple(map(default_mean, cap.layers)), self.where)
        elif self.kind == "mirror":
            assert cap.floor is not None
            held = Mirror(cap.vector, cap.layers, cap.floor, self.where)
        return held if self.half_life is None else Decaying(held, self.half_life)


def _tokens(name: str, part: str) -> float:
    try:
        tokens = float(part.removeprefix(HALF_LIFE))
    except ValueError:
        tokens = 0.0
    if not 0 < tokens < float("inf"):
        raise UsageError(f"{name}: {part}: expected {HALF_LIFE}TOKENS, a number over 0")
    return tokens
