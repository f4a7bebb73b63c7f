"""A reply of a server that tells its token ids, followed while they come: where its answer is among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from personaspace.engines.chat import Chat
from personaspace.engines.thoughts import ReplySplitter
from personaspace.engines.vllm.wire import ReadMeans
from personaspace.serve.replies import thoughts_detail


class FollowedReply:
    """Takes a server's answers, whole or in events, that have `prompt_token_ids` and, in their choice, `token_ids`.

    tells_ids: whether the client asked for those itself; otherwise they are taken away from what it gets. continued_text: the
    message that the reply goes on with, where it does.
    """

    def __init__(self, chat: Chat, tells_ids: bool = False, continued_text: str = "") -> None:
        self.chat, self.tells_ids, self.continued_text = chat, tells_ids, continued_text
        self.prompt_ids: list[int] = []
        self.ids: list[int] = []
        self._untold: list[dict[str, Any]] = []

    def take(self, event: dict[str, Any]) -> None:
        """Takes in an answer or an event, and says in its counts how many tokens were thoughts."""
        self.prompt_ids += event.get("prompt_token_ids") or ()
        if not self.tells_ids:
            event.pop("prompt_token_ids", None)
        for choice in event.get("choices", ()):
            self.ids += choice.get("token_ids") or ()
            if not self.tells_ids:
                choice.pop("token_ids", None)
        splitter = self._splitter() if event.get("usage") else None
        if splitter is not None and (thoughts := splitter.follow(self.ids).thought_tokens):
            event["usage"] |= thoughts_detail(thoughts)

    def _splitter(self) -> ReplySplitter | None:
        return self.chat.splitter(self.prompt_ids, self.continued_text)

    def answer(self, count: int) -> tuple[int, int]:
        """Where the answer is among the first so many tokens, those that were read; empty where there is none."""
        splitter = self._splitter()
        if splitter is None:
            return 0, count
        start, end = splitter.follow(self.ids[:count]).answer
        return start, end

    def tokens(self, tokens: Sequence[dict[str, Any]], final: bool = False) -> list[dict[str, Any]]:
        """Those of the newest tokens that were read that are the answer's; what is read before it has come waits."""
        self._untold += tokens
        splitter = self._splitter()
        start, end = splitter.follow(self.ids).answer if splitter else (0, len(self.ids))
        if splitter and splitter.is_open and not final:
            return []
        arrived = [t for t in self._untold if final or t["index"] < len(self.ids)]
        self._untold = self._untold[len(arrived) :]
        return [t for t in arrived if start <= t["index"] < end]


def tokens_of(means: ReadMeans) -> list[dict[str, Any]]:
    """The projections of the last tokens that were read."""
    if means.each is None:
        return []
    along, moved = means.each.tolist()
    first = int(means.tokens[0]) - len(along)
    return [
        {"index": first + k, "projection": p, "capped": bool(m)}
        for k, (p, m) in enumerate(zip(along, moved, strict=True))
    ]
