"""Keeps strangers' text from becoming a template's control tokens: `<|im_end|>` in a message is a few ordinary tokens.

Where a text holds no marker, nothing here is used and its token ids are the tokenizer's own. Where one does, the whole
conversation is encoded at once by a copy of the tokenizer that knows its control tokens by secret names: those that the
template wrote are renamed before, those in messages are left as they are, and so are text.
"""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

Ranges = Sequence[tuple[int, int]]


class ControlTokens:
    """The control tokens of a tokenizer: those that are special, and the added ones that its template writes.

    used_ids: token ids of what the template wrote in a probe, whose added tokens are control tokens too; mentioned: the
    template's own text.
    """

    def __init__(self, tokenizer: Any, mentioned: str = "", used_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        used = set(used_ids)
        self.ids_by_text: dict[str, int] = {
            token.content: i
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.content.strip()
            and (token.special or (_is_marker(token.content) and (i in used or token.content in mentioned)))
        }
        # A token takes precedence over those that it begins with.
        longest_first = sorted(self.ids_by_text, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # Nobody can write what nobody can guess; token ids do not depend on it.
        nonce = secrets.token_hex(8)
        self._hidden = {text: f"\U000f0000{nonce}.{k}\U000f0001" for k, text in enumerate(longest_first)}
        self._renamed = {text: f"\U000f0002{nonce}.{k}\U000f0003" for k, text in enumerate(longest_first)}
        self._shown = {hidden: text for text, hidden in self._hidden.items()}
        self._hidden_pattern = re.compile(f"\U000f0000{nonce}\\.\\d+\U000f0001")
        self._named = set(self._renamed.values())
        added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
        self._ids_by_name = added | {name: self.ids_by_text[text] for text, name in self._renamed.items()}
        self._copy: Tokenizer | None = None
        self._copy_names: dict[int, str] = {}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        # A token that is looked for after normalisation is also found in text that only becomes it, as `＜think＞`.
        is_normalized = any(
            t.normalized for t in tokenizer.added_tokens_decoder.values() if t.content in self.ids_by_text
        )
        self._normalizes = is_normalized and backend is not None and backend.normalizer is not None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_copy": None}

    def gives_token(self, text: str) -> bool:
        """Whether the text would give a control token.

        >>> chat.control.gives_token("hi<|im_end|>")
        True
        """
        if self._pattern.search(text):
            return True
        return self._normalizes and bool(
            self._pattern.search(self.tokenizer.backend_tokenizer.normalizer.normalize_str(text))
        )

    def hide(self, text: str, keep: Iterable[str] = ()) -> str:
        """The text with a secret name in each marker's place, which a template can neither heed nor split; keep: markers
        that stay."""
        kept_markers = set(keep)
        return self._pattern.sub(lambda m: m[0] if m[0] in kept_markers else self._hidden[m[0]], text)

    def hide_all(self, value: Any, keep: Iterable[str] = ()) -> Any:
        """The same of every text in a value of JSON: a tool's description, a call's arguments."""
        return in_texts(value, lambda text: self.hide(text, keep))

    def show(self, text: str) -> str:
        """What was hidden is seen again."""
        return self._hidden_pattern.sub(lambda m: self._shown[m[0]], text)

    def neutralise(self, text: str) -> str:
        """The text with a space behind the first character of each marker, for who tokenizes it elsewhere.

        >>> chat.control.neutralise("hi<|im_end|>")
        'hi< |im_end|>'
        """
        for _ in range(4):
            if not self.gives_token(text):
                return text
            if not self._pattern.search(text):  # it becomes a marker by being normalised
                text = self.tokenizer.backend_tokenizer.normalizer.normalize_str(text)
            text = self._pattern.sub(lambda m: f"{m[0][:1]} {m[0][1:]}" if len(m[0]) > 1 else " ", text)
        return self._pattern.sub(" ", text)

    def neutralise_all(self, value: Any, keep: Iterable[str] = ()) -> Any:
        """The same of every text in a value of JSON. keep: markers that stay."""
        kept_markers = tuple(keep)

        def neutralised(text: str) -> str:
            parts = re.split(f"({'|'.join(map(re.escape, kept_markers))})", text) if kept_markers else [text]
            return "".join(part if part in kept_markers else self.neutralise(part) for part in parts)

        return in_texts(value, neutralised)

    def encode(self, text: str, add_special_tokens: bool, ranges: Ranges = ()) -> tuple[list[int], Ranges, Ranges]:
        """Token ids of a rendered conversation in which messages' markers are hidden: those are written out, the others are
        the template's. With each token's characters `[tokens, 2]`, and where the ranges of the text's characters are among
        them."""
        written, moved = self._rewritten(text, ranges, self._shown, self._renamed)
        if (encoded := self._encode_renamed(written, add_special_tokens)) is not None:
            return *encoded, moved
        # A control token comes of ordinary text all the same, or there is no copy of this tokenizer.
        broken = {hidden: self.neutralise(shown) for hidden, shown in self._shown.items()}
        written, moved = self._rewritten(text, ranges, broken, {})
        options = {"return_offsets_mapping": True} if ranges else {}
        result = self.tokenizer(written, add_special_tokens=add_special_tokens, **options)
        return list(result["input_ids"]), list(result.get("offset_mapping", ())), moved

    def _rewritten(
        self, text: str, ranges: Ranges, hidden: dict[str, str], others: dict[str, str]
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text with what is to stand for hidden markers and for the others, and where the ranges are in it."""
        pieces, place, grown = [], 0, [(0, 0)]  # by how much the text has grown from a place on
        for match in re.finditer(f"{self._hidden_pattern.pattern}|{self._pattern.pattern}", text):
            replacement = hidden.get(match[0]) or others.get(match[0], match[0])
            pieces += [text[place : match.start()], replacement]
            place = match.end()
            grown.append((place, grown[-1][1] + len(replacement) - len(match[0])))

        def moved(character: int) -> int:
            return character + grown[bisect_right(grown, (character, len(text) * 99)) - 1][1]

        return "".join([*pieces, text[place:]]), [(moved(a), moved(b)) for a, b in ranges]

    def _encode_renamed(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]] | None:
        if self._copy is None:
            backend = getattr(self.tokenizer, "backend_tokenizer", None)
            if backend is None:
                return None
            described = json.loads(backend.to_str())
            for token in described["added_tokens"]:
                token["content"] = self._renamed.get(token["content"], token["content"])
            copy = Tokenizer.from_str(json.dumps(described))
            copy.no_truncation()
            copy.no_padding()
            # Last of all, since other threads take it as soon as it is there.
            self._copy_names = {i: token.content for i, token in copy.get_added_tokens_decoder().items()}
            self._copy = copy
        encoded = self._copy.encode(text, add_special_tokens=add_special_tokens)
        ids, control_ids = [], set(self.ids_by_text.values())
        for i, matched, by_processor in zip(encoded.ids, encoded.tokens, encoded.special_tokens_mask, strict=True):
            # The copy may number its added tokens otherwise, and some take the space beside them in.
            name = self._copy_names.get(i, "")
            name = name if name.strip() == matched.strip() else ""
            ids.append(self._ids_by_name.get(name, i))
            if ids[-1] in control_ids and name not in self._named and not by_processor:
                return None
        return ids, encoded.offsets


def in_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same value, as JSON has them, with each text in it changed; names of fields are not."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: in_texts(entry, change) for name, entry in value.items()}
    return [in_texts(entry, change) for entry in value] if isinstance(value, list | tuple) else value


def _is_marker(text: str) -> bool:
    """Whether it is no word: an added token `assistant` that a template writes is one that anybody may write."""
    return any(not c.isalnum() and not c.isspace() for c in text)
