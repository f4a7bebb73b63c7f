"""Every reader of a file that a stranger may have written: an example that it reads, and what is changed about one.

Whatever is changed, a reader gives a value that a valid file could have given, or one of the project's errors in one line; in
bounded time and memory. `test_fuzz` tries some changes, `make fuzz` as many as there is time for.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from gguf import GGUFWriter
from pydantic import BaseModel, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file

from bounded import in_bounded_time
from personaspace.api import catalog_of, options_of
from personaspace.catalog import load_catalog
from personaspace.errors import DesignError, PersonaSpaceError, UsageError
from personaspace.experiments.kit.conversations import together
from personaspace.experiments.kit.trials import GIVEN, READING, _kept_readings, _kept_replies
from personaspace.files import Place, write_table
from personaspace.formats import read_control_vector
from personaspace.formats.reference import read_capping, read_reference
from personaspace.formats.registry import TRANSCRIPT_FORMATS
from personaspace.formats.transcripts import read_transcripts
from personaspace.formats.vectors import read_vectors
from personaspace.holding import calibrate
from personaspace.holding.sweep import read_tasks
from personaspace.judges.endpoint import answer_of
from personaspace.judges.verdicts import read_verdict
from personaspace.mapping.plan import model_of
from personaspace.mapping.sums import Responses, Sums
from personaspace.model.gguf_header import check_header
from personaspace.model.sources import _base_of
from personaspace.report import words
from personaspace.report.map import page_data
from personaspace.runs import Run, Shards
from personaspace.runs.places import claim, leased
from personaspace.serve.bodies import read_body
from personaspace.serve.persona import BadRequest
from personaspace.serve.responses import ResponseRequest
from personaspace.serve.settings import Settings, read_keys
from personaspace.serve.types import ChatCompletion, Conversation, TextCompletion
from personaspace.space import PersonaSpace
from test_transcripts import EXPORTS

DATA = Path(__file__).parent / "data"
CORPUS = DATA / "fuzz"
"""Inputs that once failed, in a folder for each reader."""

MEMORY = 4 << 30
"""Bytes of addresses that a reader may take on top of what the process has; threads reserve some hundred megabytes."""


@dataclass(frozen=True)
class Reader:
    """make: writes an example into a folder, and returns the file that is changed. read: reads it, and uses what it gives."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]


# -- examples and their readers ----------------------------------------------------------------------------------------


def _file(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def _run(name: str) -> Callable[[Path], Path]:
    """A run of the first version, which has no digests: what is changed in it is not told by them."""

    def make(folder: Path) -> Path:
        shutil.copytree(DATA / "run-0.1.0", folder / "run", dirs_exist_ok=True)
        return folder / "run" / name

    return make


def _lines(*rows: Any) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


ROLES = [
    {"role": n, "description": f"A {n}.", "ai": False, "instructions": [f"You are a {n}, {k}." for k in range(5)]}
    for n in ("ghost", "clerk")
]
QUESTIONS = [{"id": k, "question": f"What is thing {k}?"} for k in range(3)]


def _catalogue(changed: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        if not changed.startswith("roles/"):
            _file("roles.jsonl", _lines(*ROLES))(folder)
            _file("questions.jsonl", _lines(*QUESTIONS))(folder)
        else:
            other = {"instruction": [{"pos": "You are a clerk."}], "eval_prompt": "Rate {answer}"}
            _file("roles/instructions/clerk.json", json.dumps(other))(folder)
            _file("extraction_questions.jsonl", _lines(*QUESTIONS))(folder)
        return _file(changed, content)(folder)

    return make


def _read_catalogue(path: Path) -> None:
    folder = path.parent.parent.parent if path.parent.name == "instructions" else path.parent
    catalog = load_catalog(folder)
    assert catalog.select("all", 2).fingerprint
    for role in catalog.roles:
        assert role.role.isprintable()
        assert all(isinstance(text, str) for text in role.instructions)


def _plain_space(folder: Path) -> Path:
    """A space as an earlier version wrote it, without a digest."""
    with safe_open(DATA / "run-0.1.0" / "space.safetensors", framework="pt") as f:
        tensors, metadata = {name: f.get_tensor(name) for name in f.keys()}, f.metadata()  # noqa: SIM118 - not a dict
    save_file(tensors, folder / "space.safetensors", metadata)
    return folder / "space.safetensors"


def _compact_space(folder: Path) -> Path:
    path = _plain_space(folder)
    PersonaSpace.load(path).compact().save(path)
    with safe_open(path, framework="pt") as f:
        tensors, header = {name: f.get_tensor(name) for name in f.keys()}, f.metadata()["personaspace"]  # noqa: SIM118
    save_file(tensors, path, {"personaspace": header})
    return path


def _read_space(path: Path) -> None:
    space = PersonaSpace.load(path)
    summary = space.summary()
    assert words.lines(summary, 80)
    json.dumps(page_data(space, summary))
    for cap in space.caps:
        space.cap(cap)
    space.read(space.tensors["default_vector"])


def _read_manifest(path: Path) -> None:
    run = Run(path.parent)
    catalog = catalog_of(path.parent, options_of(), None)
    options_of().resolved(run.manifest()["config"], catalog)
    assert run.done() is not None


def _read_replies(path: Path) -> None:
    run = Run(path.parent.parent)
    scores = run.scores_of("rules")
    names = [r.role for r in load_catalog().roles]
    for row in run.read(0).to_pylist():
        assert isinstance(row["text"], str)
    Responses.read(run, [0], names, scores, 0)
    with contextlib.suppress(DesignError):  # too few
        calibrate.draw_sample(run)


def _read_activations(path: Path) -> None:
    run = Run(path.parent.parent)
    if fault := run.fault(0):
        raise UsageError(fault)
    (run.folder / "digests" / "part-00000.sha256").unlink()
    rows = len(run.read(0))
    assert len(run.tensors(0, "activations")) == len(run.tensors(0, "norms")) == rows


ALONG = torch.eye(3, 8)


def _projections(folder: Path) -> Path:
    path = folder / "projections" / "part-00000.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"projections": torch.rand(9, 3), "tokens": torch.tensor([4, 0, 5]), "along": ALONG.clone()}
    save_file(tensors, path)
    return path


def _read_projections(path: Path) -> None:
    for each in Shards(Place(path.parent.parent)).projections(0, ALONG) or ():
        assert each.shape[1] == 3


def _sums(folder: Path) -> Path:
    path = folder / "sums" / "counts.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    n = torch.zeros(5, 3, 4, dtype=torch.int64)
    tensors = {"n": n, "tokens": n[:, :, 0].clone(), "norms": torch.zeros(5, 3, 2, dtype=torch.float64)}
    sample = torch.zeros(0, 3, dtype=torch.int64)
    save_file({**tensors, "sample": sample}, path, {"generation": "0", "shards": "[0]", "digests": "[]"})
    return path


def _read_sums(path: Path) -> None:
    sums = Sums(Shards(Place(path.parent.parent)), path.parent, 3, np.arange(4))
    if fault := sums.fault():
        raise UsageError(fault)
    sums.state()


def _digest_list(folder: Path) -> Path:
    _run("run.json")(folder)
    Run(folder / "run").fault(0)
    return folder / "run" / "digests" / "part-00000.sha256"


def _read_digest_list(path: Path) -> None:
    if fault := Run(path.parent.parent).fault(0):
        raise UsageError(fault)


def _read_lock(path: Path) -> None:
    content = path.read_bytes()
    with leased(Place(path.parent)):
        pass
    path.write_bytes(content)


def _table(schema: pa.Schema, row: dict[str, Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_table(folder / "part-00000.parquet", pa.Table.from_pylist([row, row], schema=schema))
        return folder / "part-00000.parquet"

    return make


GIVEN_ROW = {"asked": "k", "condition": "plain", "item": "a", "text": "hi", "tokens": 2, "finish": "stop"}
GIVEN_ROW |= {"projection": 0.5, "touched": 0, "activation": [0.5, 1.0]}
READ_ROW = {"asked": "k", "conversation": "a", "turn": 1, "tokens": 2, "projection": 0.5, "logprob": -1.0, "touched": 0}


def _read_kept(path: Path) -> None:
    for given in _kept_replies(path, ["k"], [("plain", "a")]).values():
        assert isinstance(given.text, str)


def _read_kept_readings(path: Path) -> None:
    for readings in _kept_readings(path, {"a": "k"}).values():
        assert all(r.tokens + 1 for r in readings)


def _read_transcript(path: Path) -> None:
    for transcript in read_transcripts(path).conversations:
        assert all(isinstance(m["content"], str) and isinstance(m["role"], str) for m in transcript.messages)


def _tensor_file(folder: Path) -> Path:
    for name, content in (
        ("role_vectors/ghost", torch.rand(3, 8)),
        ("role_vectors/clerk", {"vector": torch.rand(3, 8), "role": "clerk", "type": "pos_3"}),
        ("assistant_axis", torch.rand(3, 8)),
    ):
        path = folder / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
    return folder / "role_vectors" / "clerk.pt"


def _own_vectors(kind: str, folder: Path) -> Path:
    path = folder / f"mine.{kind}"
    if kind == "npy":
        np.save(path, np.ones((3, 8), dtype=np.float32))
    else:
        save_file({"vectors": torch.rand(2, 3, 8)}, path, {"personaspace": json.dumps({"traits": ["a", "b"]})})
    return path


def _capping(folder: Path) -> Path:
    vectors = {"layer_1/a": {"vector": torch.rand(8), "layer": 1}}
    steps = [{"vector": "layer_1/a", "cap": 0.5}]
    torch.save({"vectors": vectors, "experiments": [{"id": "x", "interventions": steps}]}, folder / "capping_config.pt")
    return folder / "capping_config.pt"


def _gguf(architecture: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        writer = GGUFWriter(folder / "x.gguf", architecture)
        writer.add_uint32(f"{architecture}.layer_count", 2)
        writer.add_array("a.words", ["one", "", "three"])
        writer.add_array("a.numbers", [1, 2, 3])
        writer.add_tensor("direction.1", np.ones(8, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return folder / "x.gguf"

    return make


def _read_header(path: Path) -> None:
    try:
        check_header(path)
    except (ValueError, OSError) as e:
        raise UsageError(str(e)) from None


def _body(kind: type[BaseModel]) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        try:
            body = kind.model_validate(read_body(path.read_bytes(), Settings(), 512))
            for message in getattr(body, "messages", ()):
                assert isinstance(message.plain()["content"], str)
            if isinstance(body, ResponseRequest):
                body.chat()
        except ValidationError as e:
            raise UsageError(str(e.errors()[0]["msg"])) from None
        except BadRequest as e:
            raise UsageError(str(e)) from None

    return read


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CHAT = {
    "model": "m",
    "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    "max_tokens": 3,
    "temperature": 0.5,
    "stop": ["a", "b"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"5": 1.0},
    "tools": [TOOL],
    "persona": {"cap": None, "steer": [{"alpha": 0.1, "direction": "axis"}], "history": [0.1], "report": "token"},
}
TEXT = {"model": "m", "prompt": ["a", "b"], "echo": True, "logprobs": 2, "max_tokens": 3, "seed": 7}
RESPONSE = {"model": "m", "input": [{"role": "user", "content": "hi"}], "instructions": "x", "max_output_tokens": 3}
COMPLETION = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "3"}}]}
VERDICT = '```json\n{"score": 3, "reason": "it is fully the role"}\n```'
ADAPTER = {"base_model_name_or_path": "me/model", "revision": "main", "peft_type": "LORA"}
CONFIG = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 300, "head_dim": 8}
CONFIG |= {"num_key_value_heads": 2, "intermediate_size": 48, "model_type": "llama", "architectures": ["Llama"]}
CONFIG |= {"max_position_embeddings": 512, "tie_word_embeddings": False}
LOCK = {"process": 2**22 + 1, "host": os.uname().nodename, "since": "2026-01-01", "token": "a"}

READERS: dict[str, Reader] = {
    "catalogue-roles": Reader(_catalogue("roles.jsonl", _lines(*ROLES)), _read_catalogue),
    "catalogue-questions": Reader(_catalogue("questions.jsonl", _lines(*QUESTIONS)), _read_catalogue),
    "catalogue-defaults": Reader(
        _catalogue(
            "defaults.jsonl", _lines({"id": 0, "instruction": None}, {"id": 1, "instruction": "You are {model}."})
        ),
        _read_catalogue,
    ),
    "catalogue-study": Reader(
        _catalogue(
            "roles/instructions/ghost.json",
            json.dumps({"instruction": [{"pos": "You are a ghost."}], "eval_prompt": "Rate {answer}"}),
        ),
        _read_catalogue,
    ),
    "space": Reader(_plain_space, _read_space),
    "space-compact": Reader(_compact_space, _read_space),
    "run": Reader(_run("run.json"), _read_manifest),
    "replies": Reader(_run("responses/part-00000.parquet"), _read_replies),
    "scores": Reader(_run("scores/rules.parquet"), lambda path: Run(path.parent.parent).scores_of("rules")),
    "activations": Reader(_run("activations/part-00000.safetensors"), _read_activations),
    "projections": Reader(_projections, _read_projections),
    "sums": Reader(_sums, _read_sums),
    "digests": Reader(_digest_list, _read_digest_list),
    "lock": Reader(_file("lock.json", json.dumps(LOCK)), _read_lock),
    "owner": Reader(
        _file("owner.json", json.dumps({"run": "abc", "config": "d"})),
        lambda path: claim(Place(path.parent), {"config": {}, "config_hash": "abc"}),
    ),
    "experiment-replies": Reader(_table(GIVEN, GIVEN_ROW), _read_kept),
    "experiment-readings": Reader(_table(READING, READ_ROW), _read_kept_readings),
    "experiment-groups": Reader(_file("groups.json", '[["a", "b"], ["c"]]'), lambda path: together(path, ["a", "d"])),
    **{
        f"transcript-{name}": Reader(
            _file("talk.txt", EXPORTS[name] * 3)
            if entry.by_text
            else _file("talk.jsonl" if name in ("served", "lm-eval") else "talk.json", json.dumps(EXPORTS[name])),
            _read_transcript,
        )
        for name, entry in TRANSCRIPT_FORMATS.items()
    },
    "transcript-lines": Reader(_file("talk.jsonl", _lines(EXPORTS["openai"], EXPORTS["sharegpt"])), _read_transcript),
    **{
        f"own-vectors-{kind}": Reader(partial(_own_vectors, kind), lambda path: read_vectors(path, 3, 8))
        for kind in ("npy", "safetensors")
    },
    "vectors": Reader(_tensor_file, lambda path: read_reference(path.parent.parent)),
    "capping": Reader(_capping, read_capping),
    "control-vector": Reader(_gguf("controlvector"), read_control_vector),
    "model-gguf": Reader(_gguf("llama"), _read_header),
    "model-config": Reader(_file("config.json", json.dumps(CONFIG)), lambda path: model_of(str(path))),
    "adapter": Reader(_file("adapter_config.json", json.dumps(ADAPTER)), lambda path: _base_of(path.parent)),
    "verdict": Reader(_file("answer.txt", VERDICT), lambda path: read_verdict(path.read_text(errors="replace"), 3)),
    "completion": Reader(_file("answer.json", json.dumps(COMPLETION)), lambda path: answer_of(path.read_bytes())),
    "keys": Reader(_file("keys", f"# mine\n{'a' * 64}  -\n{'b' * 64}\n"), read_keys),
    "tasks": Reader(_file("tasks.jsonl", _lines({"prompt": "2 + 2", "answer": "4"}) + "\n"), read_tasks),
    "body-chat": Reader(_file("body.json", json.dumps(CHAT)), _body(ChatCompletion)),
    "body-text": Reader(_file("body.json", json.dumps(TEXT)), _body(TextCompletion)),
    "body-response": Reader(_file("body.json", json.dumps(RESPONSE)), _body(ResponseRequest)),
    "body-project": Reader(_file("body.json", json.dumps({"messages": CHAT["messages"]})), _body(Conversation)),
}


# -- changes -----------------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    *(None, True, False, 0, -1, 3, 2**31, 2**63, 2**64, -(10**30), 0.5, 1e308, float("nan"), float("inf"), "", "x"),
    *("../../x", "a\0b", "\x1b]0;x\x07", "[/bold][link=x]", "\u202e\u2028", "\ud800", "é" * 3, "x" * 10_000, "9" * 40),
    *([], {}, [[]], [None], {"": None}, {"a": {}}, ["x"] * 200, [1, "x", None]),
]
RAW = ["[" * 100_000, '{"a":' * 20_000, "[" * 300 + "]" * 300, "9" * 5_000, "1e999999", "-", "nul", "1.", '"\\ud8']
NUMBERS = [0, 1, 9, 77, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]
MARK = '"\\u0001here\\u0001"'


def changed(content: bytes, suffix: str, rng: random.Random) -> bytes:
    """The content with something about it changed, once or several times."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        structured = {
            ".json": _changed_json,
            ".jsonl": _changed_lines,
            ".safetensors": _changed_safetensors,
            ".parquet": _changed_table,
        }.get(suffix)
        if structured and rng.random() < 0.6:
            with contextlib.suppress(Exception):  # changed already, and of that kind no more
                content = structured(content, rng)
                continue
        content = _changed_bytes(content, rng)
    return content


def _changed_bytes(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    length = rng.choice((1, 2, 8, 64, 1000))
    end = place + length
    kind = rng.randrange(8)
    if kind < 2 and content:
        place = min(place, len(content) - 1)
        return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
    number = struct.pack(rng.choice("<>") + "Q", rng.choice(NUMBERS))[: rng.choice((1, 2, 4, 8))]
    return {
        2: content[:place],
        3: content[:place] + content[end:],
        4: content[:end] + content[place:],
        5: content[:place] + number + content[place + len(number) :],
        6: content[:place] + rng.randbytes(min(length, 64)) + content[place:],
        7: content[:place] + bytes(length) + content[end:],
    }.get(kind, content[:place])


def _changed_json(content: bytes, rng: random.Random) -> bytes:
    value = json.loads(content)
    if rng.random() < 0.1:
        return json.dumps(rng.choice(ODD)).encode()
    raw = rng.random() < 0.15
    value = _changed_value(value, "\x01here\x01" if raw else rng.choice(ODD), rng)
    text = json.dumps(value)
    return (text.replace(MARK, rng.choice(RAW)) if raw else text).encode()


def _changed_value(value: Any, odd: Any, rng: random.Random) -> Any:
    """The value with an odd one somewhere in it: in another's place, beside others, or as a key; or with something left out."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return odd
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, kind = rng.choice(keys), rng.random()
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    if kind < 0.1:
        del copy[key]
    elif kind < 0.15:
        if isinstance(copy, dict):
            copy[odd if isinstance(odd, str) else str(odd)[:50]] = copy[key]
        else:
            copy.append(copy[key])
    elif kind < 0.2 and isinstance(copy, dict):
        copy[rng.choice(list(copy))] = copy[key]
    else:
        copy[key] = _changed_value(copy[key], odd, rng)
    return copy


def _changed_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    lines[place] = _changed_json(lines[place], rng)
    return b"\n".join(lines)


def _changed_table(content: bytes, rng: random.Random) -> bytes:
    table = pq.read_table(pa.BufferReader(content))
    place = rng.randrange(table.num_columns)
    name, kind = table.column_names[place], rng.randrange(5)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.rename_columns([n if n != name else rng.choice(("x", "", "\x1b[1m")) for n in table.column_names])
    elif kind == 2:
        table = table.set_column(place, name, pa.nulls(len(table), table[name].type))
    elif kind == 3:
        table = table.set_column(place, name, pa.array([rng.choice(("x", "-1", "\n")) for _ in range(len(table))]))
    else:
        table = table.append_column(rng.choice((name, "more")), pa.array(range(len(table))))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _changed_safetensors(content: bytes, rng: random.Random) -> bytes:
    (size,) = struct.unpack_from("<Q", content)
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    metadata = header.get("__metadata__", {})
    text = [name for name, value in metadata.items() if value[:1] in ("{", "[")]
    if text and rng.random() < 0.7:
        name = rng.choice(text)
        metadata[name] = _changed_json(metadata[name].encode(), rng).decode()
        data = json.dumps(header).encode()
    else:
        data = _changed_json(json.dumps(header).encode(), rng)
    return struct.pack("<Q", len(data)) + data + rest


# -- what must hold ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited(extra: int = MEMORY) -> Iterator[None]:
    """While it lasts, the process may take so many bytes more than it has, and as long as `in_bounded_time` allows."""
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, before[1]))
    try:
        with in_bounded_time():
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check(name: str, folder: Path, content: bytes) -> bool:
    """Puts the content into the place of a reader's example and has it read. Returns whether it was; raises `AssertionError`
    where it is neither read nor refused in one line of sensible length. What is not of the project passes through."""
    reader = READERS[name]
    path = reader.make(folder)
    path.write_bytes(content)
    try:
        reader.read(path)
    except PersonaSpaceError as e:
        line = str(e)
        assert line, f"{name}: an error without a word"
        assert len(line.splitlines()) == 1, f"{name}: more than one line: {line!r}"
        assert len(line) < 1_000, f"{name}: a line of {len(line)} characters"
        return False
    return True
