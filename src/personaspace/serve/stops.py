"""Stop texts, found as a reply grows: what each new character costs does not depend on how long the reply or a stop text is."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """One stop text (Knuth, Morris and Pratt). matched: how many of its first characters the text so far ends with."""

    def __init__(self, text: str) -> None:
        self.text, self.matched = text, 0
        # Where the next character does not fit: the longest beginning of the stop text that still fits before it.
        self._shorter = [0] * len(text)
        length = 0
        for k in range(1, len(text)):
            while length and text[k] != text[length]:
                length = self._shorter[length - 1]
            length += text[k] == text[length]
            self._shorter[k] = length

    def feed(self, added: str) -> int | None:
        """How many of the added characters stand before the end of its first occurrence; None where it is not there yet."""
        matched, text = self.matched, self.text
        for k, character in enumerate(added):
            while matched and character != text[matched]:
                matched = self._shorter[matched - 1]
            matched += character == text[matched]
            if matched == len(text):
                return k + 1
        self.matched = matched
        return None


class StopTexts:
    """A reply's stop texts.

    >>> stops = StopTexts(["END", "never"])
    >>> stops.feed("the E"), stops.held_back
    (None, 1)
    >>> stops.feed("ND of it")
    4
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.stops = [StopText(text) for text in texts if text]
        self.length = 0

    def feed(self, added: str) -> int | None:
        """Where in the whole text the first stop text begins, once one is there; nothing is fed after that."""
        ends = [(stop.feed(added), stop) for stop in self.stops]
        starts = [self.length + end - len(stop.text) for end, stop in ends if end is not None]
        self.length += len(added)
        return min(starts, default=None)

    @property
    def held_back(self) -> int:
        """Characters at the end of the text that may be the beginning of a stop text."""
        return max((stop.matched for stop in self.stops), default=0)
