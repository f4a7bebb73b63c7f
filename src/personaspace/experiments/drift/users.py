"""Who talks to the model in a simulated conversation: a script, a model or an endpoint; it knows nothing of the axis.

What a model or an endpoint says as the user is kept in the experiment's folder, so that it is not asked again. It talks to an
endpoint over the network where one is named.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from personaspace.engines import Engine
from personaspace.engines.prompts import Message, Prompt, Sampling, row_seed
from personaspace.errors import RunError, RunMismatch, UsageError
from personaspace.experiments import data
from personaspace.experiments.kit.conversations import Dialogue, fitted
from personaspace.experiments.kit.trials import Trials
from personaspace.files import read_json, write_whole
from personaspace.judges.endpoint import MODEL, Endpoint

BATCH = 64
"""Messages asked of a playing user at a time: what a killed experiment may have to ask again."""
TIMEOUT = 120.0

PLAYED = """You play a person who writes to an AI assistant. You are not the assistant and you never answer as one.
The person: {description}
What the person wants to talk about: {topic}.
Write only the person's next message, one to three sentences in their own voice. React to what the assistant has said, and let \
the conversation move on. No quotation marks, no stage directions."""
OPENING = "(The conversation begins. Write the person's first message.)"


class _Script(BaseModel):
    model_config = ConfigDict(extra="ignore")
    domain: str = Field(min_length=1)
    persona: str = Field(min_length=1)
    topic: str = Field(min_length=1)
    turns: tuple[str, ...] = Field(min_length=1)


class _Persona(BaseModel):
    model_config = ConfigDict(extra="ignore")
    domain: str = Field(min_length=1)
    persona: str = Field(min_length=1)
    description: str
    topics: tuple[str, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Scene:
    """Who talks of what: a persona with a topic; `turns` are its messages where it is scripted."""

    domain: str
    persona: str
    topic: str
    description: str = ""
    turns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.domain}/{self.persona}/{self.topic}"


def scenes(user: str, file: str, per_domain: int, turns: int) -> list[Scene]:
    """The scenes of each domain, every persona's first topic before anyone's second. file: the texts that come along unless
    given. Raises `UsageError` where there are too few or a script is too short, `CatalogError` with file and line."""
    if user == "scripted":
        scripts = data.records(file or "drift_scripts.jsonl", _Script)
        every_scene = [Scene(s.domain, s.persona, s.topic, turns=s.turns) for s in scripts]
    else:
        personas = data.records(file or "drift_users.jsonl", _Persona)
        every_scene = [Scene(p.domain, p.persona, topic, p.description) for p in personas for topic in p.topics]
    chosen = []
    for domain in dict.fromkeys(s.domain for s in every_scene):
        before, ranked = Counter[str](), []
        for s in every_scene:
            if s.domain == domain:
                ranked.append((before[s.persona], s))
                before[s.persona] += 1
        of_domain = [s for _, s in sorted(ranked, key=lambda scene: scene[0])]
        if len(of_domain) < per_domain:
            raise UsageError(f"--conversations {per_domain}: there are {len(of_domain)} in the domain {domain}")
        chosen += of_domain[:per_domain]
    short = min(chosen, key=lambda s: len(s.turns))
    if user == "scripted" and len(short.turns) < turns:
        raise UsageError(f"--turns {turns}: the conversation {short.name} is scripted for {len(short.turns)}")
    if len({s.name for s in chosen}) < len(chosen):
        raise UsageError("two conversations have the same domain, persona and topic; give them topics of their own")
    return chosen


def keep_scenes(folder: Path, chosen: Sequence[Scene]) -> None:
    """Notes in the folder who is talking. Raises `RunMismatch` where others were: a user's file may have changed since."""
    path, written = folder / "scenes.json", json.dumps([asdict(s) for s in chosen], indent=1, ensure_ascii=False)
    if not path.is_file():
        write_whole(path, written.encode())
    elif path.read_text(encoding="utf-8") != written:
        raise RunMismatch(
            f"{folder} holds conversations of other users, or their texts have changed; give another --out"
        )


# -- playing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UserMessage:
    """A user's message, or why there is none."""

    text: str | None
    problem: str = ""


Play = Callable[[Sequence[tuple[str, list[Message]]], int], list[UserMessage]]
"""From (scene's name, conversation as the playing model sees it) and the turn to what is said."""


def flipped(scene: Scene, messages: Sequence[Message]) -> list[Message]:
    """The conversation as a playing model sees it: the user's messages are its own, the model's replies are put to it."""
    roles = {"user": "assistant", "assistant": "user"}
    head = PLAYED.format(description=scene.description, topic=scene.topic)
    begun = [{"role": "system", "content": head}, {"role": "user", "content": OPENING}]
    return [*begun, *({"role": roles[m["role"]], "content": m["content"]} for m in messages)]


class Users:
    """What users say, turn by turn, each message asked for once."""

    def __init__(self, trials: Trials[Any], scenes: Sequence[Scene], user: str, model: str, tokens: int) -> None:
        self.trials, self.scenes, self.user = trials, {s.name: s for s in scenes}, user
        self.problems: list[str] = []
        self.play: Play | None = None
        if user == "local":
            self.play = _local(trials.load(model) if model else trials.engine, trials.options.seed, tokens)
        elif user.startswith(("http://", "https://")):
            self.play = _endpoint(user, model or MODEL, tokens)
        elif user != "scripted":
            raise UsageError(f"--user {user}: expected scripted, local, or an endpoint's address (https://…)")

    def say(self, turn: int, dialogues: Sequence[Dialogue]) -> dict[str, str]:
        """The users' messages of a turn, counted from 1, by dialogue; those that failed are not among them. The first message
        is the same under every condition. Raises `RunError` where nothing is said at all."""
        if self.play is None:
            return {d.key: self.scenes[d.name].turns[turn - 1] for d in dialogues}
        path = self.trials.responses / f"user-{turn:02d}.json"
        texts = read_json(path, dict[str, str]) or {}
        keys = {d.key: d.name if turn == 1 else d.key for d in dialogues}
        missing = {keys[d.key]: d for d in dialogues if keys[d.key] not in texts}
        for k in range(0, len(missing), BATCH):
            batch = list(missing)[k : k + BATCH]
            conversations = [
                (missing[k].name, flipped(self.scenes[missing[k].name], missing[k].messages)) for k in batch
            ]
            messages = self.play(conversations, turn)
            texts |= {key: s.text for key, s in zip(batch, messages, strict=True) if s.text is not None}
            self.problems += [s.problem for s in messages if s.text is None]
            write_whole(path, json.dumps(texts, indent=1, ensure_ascii=False).encode())
            if turn == 1 and not texts:
                raise RunError(
                    f"--user {self.user}: none of {len(messages)} first messages came ({messages[0].problem})"
                )
        return {d.key: texts[keys[d.key]] for d in dialogues if keys[d.key] in texts}


def _local(engine: Engine, seed: int, tokens: int) -> Play:
    """A loaded model plays: the same scene has the same seed under every condition."""

    def play(conversations: Sequence[tuple[str, list[Message]]], turn: int) -> list[UserMessage]:
        prompts = []
        for k, (name, messages) in enumerate(conversations):
            seed_of = row_seed(seed, f"user-{turn}/{name}", 0)
            prompts.append(Prompt(tuple(fitted(engine, messages, tokens)), name, index=k, seed=seed_of))
        texts = {r.prompt.index: r.text for r in engine.respond(prompts, Sampling(max_new_tokens=tokens))}
        return [_cleaned(texts[k]) for k in range(len(conversations))]

    return play


def _endpoint(url: str, model: str, tokens: int) -> Play:
    """A model behind an OpenAI-compatible endpoint plays."""
    endpoint = Endpoint(model, url, f"--user {url}", timeout=TIMEOUT)

    def play(conversations: Sequence[tuple[str, list[Message]]], turn: int) -> list[UserMessage]:
        answers = endpoint.ask([messages for _, messages in conversations], max_tokens=tokens)
        return [UserMessage(None, a.problem) if a.text is None else _cleaned(a.text) for a in answers]

    return play


def _cleaned(text: str) -> UserMessage:
    text = text.strip()
    if len(text) > 2 and text[0] in '"“' and text[-1] in '"”':
        text = text[1:-1].strip()
    return UserMessage(text) if text else UserMessage(None, "an empty message")
