"""Where messages stand in a rendered conversation, told by probes in their place; it knows nothing of templates."""

from __future__ import annotations

import re
from collections.abc import Mapping

PROBE = "\u2042probe\u2042"
"""What no conversation says."""


def probed_ranges(
    probed: str, text: str, texts: Mapping[str, tuple[int, bool, str]]
) -> dict[tuple[int, bool], tuple[int, int]] | None:
    """Where messages' answers and thoughts are in a rendered text, from the same one with probes in their place; None where the
    two are not alike, or an answer is missing. Thoughts that a template leaves out are missing; a message's are one range."""
    ranges: dict[tuple[int, bool], tuple[int, int]] = {}
    place, behind = 0, 0
    for match in re.finditer(f"{PROBE}[0-9a-f]{{16}}", probed):
        if match[0] not in texts:
            return None
        between = probed[behind : match.start()]
        message, is_thought, stretch = texts[match[0]]
        if not text.startswith(between + stretch, place):
            return None
        start = place + len(between)
        place, behind = start + len(stretch), match.end()
        if not is_thought and (message, False) in ranges:
            return None
        ranges[message, is_thought] = (ranges.get((message, is_thought), (start, 0))[0], place)
    answered = {message for message, is_thought, _ in texts.values() if not is_thought}
    if text[place:] != probed[behind:] or any((message, False) not in ranges for message in answered):
        return None
    return ranges
