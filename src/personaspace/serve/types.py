"""What a request may hold. What is not supported is refused by name, unless it asks for nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from personaspace.engines.chat import Thinking
from personaspace.serve.thinking import Effort, TemplateOptions, thinking_of

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
}
"""Fields of OpenAI's that are not supported, and the values with which they ask for nothing."""

IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""Fields that say who asks; nothing depends on them."""


def _encodable(value: str) -> str:
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("half of a surrogate pair is no text")
    return value


Text = Annotated[str, AfterValidator(_encodable)]
"""JSON's escapes may spell what is no text: no tokenizer takes it, and no reply could say it."""


def _integral(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_integral)]
"""A whole number, also written 16.0; never text, and never true."""


class Steer(BaseModel):
    """Steering along the axis or towards a role, α in units of the layer's mean residual norm."""

    model_config = ConfigDict(extra="forbid", strict=True)
    direction: Text = "axis"
    alpha: float = Field(ge=-4, le=4)


class Persona(BaseModel):
    """What is done to a reply, and what is told of it. history: the drifts of earlier turns, for an alert over several."""

    model_config = ConfigDict(extra="forbid", strict=True)
    cap: Text | None = None
    steer: list[Steer] = Field(default=[], max_length=8)
    report: Literal["turn", "token"] = "turn"
    history: list[float] = Field(default=[], max_length=1000)


def _text(value: Any) -> Any:
    """A message's text, also where it comes in parts."""
    if not isinstance(value, list):
        return "" if value is None else value
    if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in value):
        raise ValueError("of a message's parts, only those of type text are taken")
    return "".join(p["text"] for p in value)


_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": _PART}]}


class ChatMessage(BaseModel):
    """A message; `name` is taken and not used."""

    model_config = ConfigDict(extra="ignore", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text, BeforeValidator(_text), WithJsonSchema(_CONTENT)] = ""

    def plain(self) -> dict[str, str]:
        """The message as an engine takes it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    include_usage: bool = False


def _as_taken(schema: dict[str, Any]) -> None:
    """Has a request's JSON Schema say what is taken before fields are looked at: null for what has a default, one text as
    `stop`, and OpenAI's other fields where they ask for nothing."""
    fields = schema["properties"]
    for name, field in fields.items():
        if "default" in field and {"type": "null"} not in field.get("anyOf", ()):
            annotations = {k: field.pop(k) for k in ("default", "title") if k in field}
            single_text = [{"type": "string"}] if name == "stop" else []
            fields[name] = {**annotations, "anyOf": [field, *single_text, {"type": "null"}]}
    fields.update({name: {"enum": list(values)} for name, values in NEUTRAL.items()})
    fields.update({name: {} for name in IGNORED})


def _asks_for_nothing(name: str, value: Any) -> bool:
    """Whether it is one of the field's neutral values; true is not 1 here."""
    return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in NEUTRAL.get(name, ()))


class Completion(BaseModel):
    """What chat and text completions have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_as_taken)
    model: Text
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: Whole | None = Field(None, ge=1)
    seed: Whole | None = None
    stop: list[Text] = Field(default=[], max_length=16)
    n: Whole = Field(1, ge=1)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    persona: Persona = Persona()

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_asks_for_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            k: v
            for k, v in values.items()
            if k not in IGNORED and not _asks_for_nothing(k, v) and not (v is None and k in cls.model_fields)
        }

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: list[str]) -> list[str]:
        return [s for s in value if s]


class ChatCompletion(Completion):
    """`/v1/chat/completions`. reasoning_effort, chat_template_kwargs: whether the model may think before it answers."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Whole | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: Whole = Field(0, ge=0, le=20)
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @property
    def thinking(self) -> Thinking | None:
        """Whether, or how hard, the model may think; None for as the server does."""
        options = self.chat_template_kwargs
        return thinking_of(options.model_dump() if options else None, self.reasoning_effort)

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many alternatives' log-probabilities are wanted; None for no log-probabilities at all."""
        return self.top_logprobs if self.logprobs else None


class TextCompletion(Completion):
    """`/v1/completions`: prompts as text or as token ids."""

    prompt: Text | list[Whole] | list[Text] | list[list[Whole]]
    logprobs: Whole | None = Field(None, ge=0, le=20)
    echo: bool = False

    @model_validator(mode="after")
    def _an_echo_is_whole(self) -> TextCompletion:
        if self.echo and self.stream:
            raise ValueError("echo and stream do not go together")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One a reply."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[int(t) for t in self.prompt if isinstance(t, int)]]
        return [p for p in self.prompt if not isinstance(p, int)]

    @property
    def limit(self) -> int | None:
        return self.max_tokens or 16

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class Conversation(BaseModel):
    """`/v1/persona/project`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    messages: list[ChatMessage] = Field(min_length=1)
    model: Text | None = None
