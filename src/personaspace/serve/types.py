"""What a request may hold. What is not supported is refused by name, unless it asks for nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from personaspace.engines.chat import Thinking
from personaspace.serve.messages import LONGEST_STOP, ChatMessage, Nullable, OfferedTool, Text, Whole, nullable
from personaspace.serve.settings import OnAlert
from personaspace.serve.thinking import Effort, TemplateOptions, thinking_of

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "best_of": (1,),
    "include_reasoning": (True, False),
    "verbosity": ("medium",),
    "suffix": ("",),
    "echo": (False,),
    # What other servers of the same API take.
    "documents": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "typical_p": (1,),
    "top_a": (0,),
    "tfs_z": (1,),
    "mirostat": (0,),
    "min_tokens": (0,),
    "bad_words": ([],),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "vllm_xargs": ({},),
    "priority": (0,),
}
"""Fields that are not supported, and the values beside null with which they ask for nothing."""

IGNORED = (
    "user",
    "metadata",
    "safety_identifier",
    "service_tier",
    "store",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
)
"""Fields that say who asks, or how fast and how dear a reply may be; no reply depends on them."""


MOST_READ = 32
"""Directions that a reply is read along."""


class Steer(Nullable):
    """Steering along the axis or towards a role, α in units of the layer's mean residual norm."""

    direction: Text = "axis"
    alpha: float = Field(ge=-4, le=4)


class Persona(Nullable):
    """What is done to a reply, and what is told of it. cap: a cap, or a way of holding by one, as `capped+mirror+answer`, also
    from an alert on, `capped+alert`; read: directions that it is read along, None for the server's own choice; history: the
    drifts of earlier turns, for an alert over several; histories: their shifts along other directions, by name; on_alert: what
    is done where an alert was raised in them, None for the server's own choice."""

    cap: Text | None = None
    steer: list[Steer] = Field(default=[], max_length=8)
    report: Literal["turn", "token"] = "turn"
    read: list[Text] | None = Field(None, max_length=MOST_READ)
    history: list[float] = Field(default=[], max_length=1000)
    histories: dict[Text, Annotated[list[float], Field(max_length=1000)]] = Field(default={}, max_length=MOST_READ)
    on_alert: OnAlert | None = None


class NamedFunction(Nullable):
    """A function by its name."""

    model_config = ConfigDict(extra="ignore")
    name: Text


class NamedTool(Nullable):
    """The tool that is to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class _StreamOptions(Nullable):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


def as_taken(schema: dict[str, Any], neutral: Mapping[str, Sequence[Any]] = NEUTRAL) -> None:
    """Has a request's JSON Schema name the fields that are taken where they ask for nothing, and null as nothing."""
    nullable(schema)
    fields = schema["properties"]
    fields.update({name: {"enum": [*values, None]} for name, values in neutral.items() if name not in fields})
    fields.update({name: {} for name in IGNORED})


def asks_for_nothing(neutral: Sequence[Any], value: Any) -> bool:
    """Whether it is one of a field's neutral values; true is not 1 here."""
    return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in neutral)


def what_matters(
    values: Mapping[str, Any], fields: Collection[str], neutral: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """A request's body without fields on which nothing depends, as they stand there."""
    return {
        name: value
        for name, value in values.items()
        if value is not None
        and (name in fields or not (name in IGNORED or asks_for_nothing(neutral.get(name, ()), value)))
    }


class Completion(Nullable):
    """What chat and text completions have in common."""

    model_config = ConfigDict(json_schema_extra=lambda schema: as_taken(schema))
    model: Text
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: Whole = Field(-1, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default={}, max_length=1024)
    seed: Whole | None = None
    stop: list[Annotated[Text, Field(max_length=LONGEST_STOP)]] = Field(default=[], max_length=16)
    stop_token_ids: list[Whole] = Field(default=[], max_length=64)
    ignore_eos: bool = False
    n: Whole = Field(1, ge=1)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    persona: Persona = Persona()

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_asks_for_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        # As many replies as are made are the best of as many.
        return what_matters(values, cls.model_fields, {**NEUTRAL, "best_of": (1, values.get("n"))})

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: list[str]) -> list[str]:
        return [s for s in value if s]

    @field_validator("logit_bias")
    @classmethod
    def _tokens_by_id(cls, value: dict[str, float]) -> dict[str, float]:
        for token in value:
            if not (token.isascii() and token.isdecimal() and len(token) < 10):
                raise ValueError(f"expected token ids as names, found {token[:40]!r}")
        return value


class Continuable(Nullable):
    """A conversation's messages. continue_final_message, or add_generation_prompt false: the assistant's last one is gone on
    with."""

    messages: list[ChatMessage] = Field(min_length=1)
    continue_final_message: bool = False
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _only_the_assistants_message_goes_on(self) -> Continuable:
        if (
            self.continue_final_message
            and self.add_generation_prompt
            and "add_generation_prompt" in self.model_fields_set
        ):
            raise ValueError(
                "continue_final_message goes on with a message, and add_generation_prompt begins a new one"
            )
        if self.continued and self.messages[-1].role != "assistant":
            name = "continue_final_message" if self.continue_final_message else "add_generation_prompt: false"
            raise ValueError(
                f"{name} goes on with an assistant's message; the last one is of role {self.messages[-1].role}"
            )
        if self.continued and self.messages[-1].calls:
            raise ValueError("continue_final_message goes on with text; the last message has tool_calls")
        return self

    @property
    def continued(self) -> bool:
        """Whether the last message is gone on with."""
        return self.continue_final_message or not self.add_generation_prompt


class ChatCompletion(Completion, Continuable):
    """`/v1/chat/completions`. tools: what the model may call, where its template tells it of them; tool_choice: whether it may,
    or, of a single or a named tool, has to. reasoning_effort, chat_template_kwargs: whether the model may think before it
    answers."""

    max_tokens: Whole | None = Field(None, ge=1)
    max_completion_tokens: Whole | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: Whole = Field(0, ge=0, le=20)
    tools: list[OfferedTool] = Field(default=[], max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True

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
    """`/v1/completions`: prompts as text or as token ids. With max_tokens 0 nothing is made; an echoed prompt is scored,
    and in a stream it stands in a reply's first chunk."""

    prompt: Text | list[Whole] | list[Text] | list[list[Whole]]
    max_tokens: Whole | None = Field(None, ge=0)
    logprobs: Whole | None = Field(None, ge=0, le=20)
    echo: bool = False

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
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class Conversation(Nullable):
    """`/v1/persona/project`."""

    messages: list[ChatMessage] = Field(min_length=1)
    model: Text | None = None
