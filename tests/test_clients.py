"""Common clients and evaluation tools, unmodified, against the server of either engine: small tasks on the embedded model,
plain and capped. `make test` asks our own, `make test-vllm` vLLM's, which another environment starts."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
import torch

from personaspace.model.attach import attach
from personaspace.space import PersonaSpace
from served import serving
from vllm_server import SMALL, vllm_served

VLLM_PYTHON = os.environ.get("PERSONASPACE_VLLM_PYTHON")
"""The Python of an environment with vLLM, whose server is asked then; otherwise it is our own."""

CONTEXT = 160
ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
ITEMS = [json.loads(line) for line in (DATA / "capitals.jsonl").read_text().splitlines()]
MODELS = ["smollm2", "smollm2:capped"]


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """No tool asks the Hub for anything or writes into the user's own caches."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"):
            patch.setenv(name, "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.chdir(ROOT)  # the task's file names its data from there
        yield


@pytest.fixture(scope="module")
def space():
    return PersonaSpace.load("smollm2")


@contextmanager
def served(space, engine, context):
    """A server that has room for so many tokens of a prompt and its reply."""
    if VLLM_PYTHON:
        options = [f"--max-model-len={context}" if option.startswith("--max-model-len") else option for option in SMALL]
        with vllm_served("smollm2", VLLM_PYTHON, options) as at:
            yield at
    else:
        with serving(space, engine, context=context) as (at, _):
            yield at


@pytest.fixture(scope="module")
def address(space, smollm2):
    with served(space, smollm2, CONTEXT) as at:
        yield at


@pytest.fixture(scope="module")
def tokenizer(smollm2, tmp_path_factory):
    """A folder with the model's tokenizer, which lm-eval counts a question's tokens with."""
    folder = tmp_path_factory.mktemp("tokenizer")
    smollm2.tokenizer.save_pretrained(folder)
    return str(folder)


def lm_eval(kind, task, limit=None, chat=False, generation=None, include=DATA, **arguments):
    """A task's results and its samples, as lm-eval's own command makes them. generation: its `--gen_kwargs`."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(include), include_defaults=False)
    found = simple_evaluate(
        model=kind,
        model_args=arguments,
        tasks=[task],
        task_manager=tasks,
        apply_chat_template=chat,
        limit=limit,
        gen_kwargs=generation,
        bootstrap_iters=0,
    )
    return found["results"][task], found["samples"][task]


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_lm_eval_asks_a_generative_task_by_chat(address, model):
    results, samples = lm_eval(
        "local-chat-completions", "capitals_said", chat=True, model=model, base_url=f"{address}/v1/chat/completions"
    )
    assert results["exact_match,named"] >= 0.75  # it knows these capitals, capped too
    assert len(samples) == len(ITEMS)


@pytest.mark.long
def test_lm_eval_may_ask_for_more_tokens_than_there_are(address):
    more = {"max_gen_toks": 1280, "repetition_penalty": 1.0, "top_k": -1}  # the first is what IFEval asks for
    results, _ = lm_eval(
        "local-chat-completions",
        "capitals_said",
        limit=1,
        chat=True,
        generation=more,
        model="smollm2",
        base_url=f"{address}/v1/chat/completions",
    )
    assert results["exact_match,named"] == 1.0


@pytest.fixture(scope="module")
def ifeval(tmp_path_factory):
    """A folder with lm-eval's own IFEval, its file and its code, but for where the data come from."""
    pytest.importorskip("langdetect", reason="IFEval's instructions need lm-eval[ifeval]")
    source = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks" / "ifeval"
    folder = tmp_path_factory.mktemp("ifeval")
    task = (source / "ifeval.yaml").read_text()
    own = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    train: {DATA / 'instructions.jsonl'}\n"
    assert task.count("dataset_path: google/IFEval\ndataset_name: null\n") == 1
    (folder / "ifeval.yaml").write_text(task.replace("dataset_path: google/IFEval\ndataset_name: null\n", own))
    (folder / "utils.py").write_text((source / "utils.py").read_text())
    return folder


@pytest.mark.long
def test_lm_evals_ifeval_runs_as_it_is_on_prompts_of_our_own(address, ifeval):
    """The Hub's 541 prompts are not here; a dozen of the same fields are. It asks for 1,280 tokens, and gets what fits."""
    results, samples = lm_eval(
        "local-chat-completions",
        "ifeval",
        chat=True,
        include=ifeval,
        model="smollm2:capped",
        base_url=f"{address}/v1/chat/completions",
        num_concurrent=12,
    )
    followed = [kept for s in samples for kept in s["inst_level_strict_acc"]]
    assert (len(samples), len(followed)) == (12, 15)
    assert results["inst_level_strict_acc,none"] == pytest.approx(sum(followed) / 15)
    assert results["prompt_level_loose_acc,none"] >= results["prompt_level_strict_acc,none"]
    replies = {s["doc"]["key"]: s["resps"][0][0] for s in samples}
    kept = {s["doc"]["key"]: s["inst_level_strict_acc"] for s in samples}
    assert all(replies.values())
    assert kept[0] == ["," not in replies[0]]
    assert kept[4] == [not re.search(r"\b(snow|cold)\b", replies[4], re.IGNORECASE)]
    assert kept[5] == [len(re.findall("dog", replies[5], re.IGNORECASE)) >= 3]
    assert any(followed)


@pytest.mark.long
@pytest.mark.parametrize("tokenized", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("model", MODELS)
def test_lm_eval_takes_multiple_choice_by_log_likelihoods_that_are_those_of_a_plain_pass(
    address, space, smollm2, tokenizer, model, tokenized
):
    results, samples = lm_eval(
        "local-completions",
        "capitals_chosen",
        limit=2,
        model=model,
        base_url=f"{address}/v1/completions",
        tokenizer=tokenizer,
        tokenizer_backend="huggingface",
        tokenized_requests=tokenized,
    )
    assert results["acc,none"] == 1.0
    for sample, item in zip(samples, ITEMS, strict=False):
        for ((said, greedy),), choice in zip(sample["resps"], item["choices"], strict=True):
            logprob, likely = log_likelihood(smollm2, space, model, f"Question: {item['question']}\nAnswer:", choice)
            assert float(said) == pytest.approx(logprob, abs=1e-3)
            assert str(greedy) == str(likely)


def log_likelihood(engine, space, model, asked, choice):
    """A choice's log-probability after a question, and whether each of its tokens is the most probable one."""
    ids = engine.chat.text_ids(f"{asked} {choice}")
    known = len(engine.chat.text_ids(asked))
    with torch.inference_mode(), attach(engine.model, *([space.cap()] if ":" in model else [])):
        every = engine.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    each = [(every[k - 1, ids[k]], every[k - 1].argmax() == ids[k]) for k in range(known, len(ids))]
    return float(sum(p for p, _ in each)), all(bool(best) for _, best in each)


@pytest.mark.long
@pytest.mark.parametrize(
    ("provider", "own", "model"),
    [
        ("openai", {"responses_api": False}, "smollm2"),
        ("openai", {"responses_api": False}, "smollm2:capped"),
        ("openai", {}, "smollm2"),
        ("openai-api/personaspace", {}, "smollm2"),
    ],
    ids=["chat", "chat, capped", "responses", "any"],
)
def test_inspect_ai_asks_a_task_through_its_openai_providers(address, tmp_path, provider, own, model):
    from inspect_ai import Task
    from inspect_ai import eval as inspect_eval
    from inspect_ai.dataset import Sample, json_dataset
    from inspect_ai.model import get_model
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    # Its `openai` provider takes models that it does not know for OpenAI's next ones: with the Responses API, unless told
    # otherwise, and without a temperature, unless that is put in past it, which it does not do for that API.
    asked = json_dataset(
        str(DATA / "capitals.jsonl"), lambda r: Sample(input=r["question"], target=r["choices"][r["answer"]])
    )
    (log,) = inspect_eval(
        Task(dataset=asked, solver=generate(), scorer=includes()),
        model=get_model(f"{provider}/{model}", base_url=f"{address}/v1", api_key="none", **own),
        max_tokens=12,
        extra_body={"temperature": 0},
        log_dir=str(tmp_path),
        display="none",
    )
    assert log.status == "success", log.error and log.error.message
    assert len(log.samples) == len(ITEMS)
    said = [s.output.completion for s in log.samples]
    assert all(said)
    if own or provider != "openai":
        assert log.results.scores[0].metrics["accuracy"].value >= 0.75, said


ASKED = ITEMS[0]["question"]
ANSWER = ITEMS[0]["choices"][ITEMS[0]["answer"]]


@pytest.fixture(scope="module")
def expected(address):
    """What the server says to plain HTTP."""
    body = {"model": "smollm2", "messages": [{"role": "user", "content": ASKED}], "temperature": 0, "max_tokens": 12}
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["message"][
        "content"
    ]


@pytest.mark.long
def test_litellm_asks_and_streams(address, expected):
    import litellm

    asked = {
        "model": "openai/smollm2",
        "api_base": f"{address}/v1",
        "api_key": "none",
        "messages": [{"role": "user", "content": ASKED}],
        "temperature": 0,
        "max_tokens": 12,
    }
    made = litellm.completion(**asked, extra_body={"persona": {"cap": "capped"}})
    assert made.choices[0].message.content
    assert litellm.completion(**asked).choices[0].message.content == expected
    chunks = litellm.completion(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected


@pytest.mark.long
@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_langchain_asks_and_streams_with_an_agents_history(address, expected, responses):
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="smollm2",
        base_url=f"{address}/v1",
        api_key="none",
        temperature=0,
        max_tokens=12,
        use_responses_api=responses,
    )
    assert model.invoke(ASKED).text == expected
    assert "".join(chunk.text for chunk in model.stream(ASKED)) == expected
    call = {"name": "find", "args": {"where": "France"}, "id": "call_1", "type": "tool_call"}
    history = [
        HumanMessage(ASKED),
        AIMessage("", tool_calls=[call]),
        ToolMessage(f"The tool found {ANSWER}.", tool_call_id="call_1"),
    ]
    assert model.invoke(history).text


@pytest.mark.long
def test_langchain_asks_a_text_completion(address):
    from langchain_openai import OpenAI

    model = OpenAI(model="smollm2", base_url=f"{address}/v1", api_key="none", temperature=0, max_tokens=5)
    assert ANSWER in model.invoke(ASKED.replace("What is t", "T").replace("?", " is"))


AGENT = [
    {"role": "user", "content": ASKED},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"where": "France"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": f"The tool found {ANSWER}."},
]


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_openais_client_chats_and_streams_with_usage_and_persona(client, model):
    asked = {"model": model, "messages": [{"role": "user", "content": ASKED}], "temperature": 0, "max_tokens": 12}
    assert model in [m.id for m in client.models.list()]
    made = client.chat.completions.create(**asked)
    (choice,) = made.choices
    assert made.model == model
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    assert (made.persona["capped_tokens"] > 0) == (":" in model)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == choice.message.content
    assert chunks[-1].usage.model_dump(exclude_none=True) == made.usage.model_dump(exclude_none=True)
    ends = [c for c in chunks if c.choices and c.choices[0].finish_reason]
    assert [c.choices[0].finish_reason for c in ends] == [choice.finish_reason]
    assert ends[0].persona["projection"] == pytest.approx(made.persona["projection"], rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_openais_client_asks_for_a_response_that_is_read_and_held(client, expected, model):
    asked = {"model": model, "input": ASKED, "temperature": 0, "max_output_tokens": 12}
    made = client.responses.create(**asked)
    if model == "smollm2":
        assert made.output_text == expected
    assert (made.persona["capped_tokens"] > 0) == (":" in model)
    with client.responses.stream(**asked) as stream:
        events = list(stream)
    last = events[-1].response
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == made.output_text
    assert (last.output_text, last.status, last.usage) == (made.output_text, made.status, made.usage)
    assert last.persona["projection"] == pytest.approx(made.persona["projection"], rel=1e-3)


@pytest.mark.long
def test_an_agents_loop_has_its_tools_in_its_history(client):
    """The embedded model's template writes no calls: they are text, the same to both servers."""
    asked = {"model": "smollm2", "temperature": 0, "max_tokens": 12}
    made = client.chat.completions.create(messages=AGENT, **asked)
    call = {"name": "find", "arguments": {"where": "France"}}
    spelt = [AGENT[0], {"role": "assistant", "content": f"<tool_call>\n{json.dumps(call)}\n</tool_call>"}, AGENT[2]]
    written = client.chat.completions.create(messages=spelt, **asked)
    assert made.choices[0].message.content == written.choices[0].message.content
    assert made.usage == written.usage
    more = [*AGENT, made.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": "Are you sure?"}]
    assert client.chat.completions.create(messages=more, **asked).usage.prompt_tokens > made.usage.prompt_tokens


@pytest.mark.long
def test_openais_client_in_javascript_chats_and_streams(address, expected):
    told = in_javascript(address, "smollm2", ASKED)
    assert told["models"][:2] == MODELS
    for way in ("whole", "streamed", "response", "response_streamed"):
        assert told[way] == {"text": expected, "calls": []}, way
    assert told["persona"] > 0
    assert (told["refused"]["status"], "logit_bias" in told["refused"]["message"]) == (400, True)


def in_javascript(address, model, content, tool=None):
    """What OpenAI's own client in JavaScript is told. tool: one that is offered."""
    packages = Path(sys.prefix) / "js" / "node_modules"
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    if not (packages / "openai").is_dir():
        pytest.skip(f"npm has not brought openai to {packages}; `make test` tries to")
    arguments = [address, json.dumps({"model": model, "content": content, "tool": tool})]
    environment = {**os.environ, "NODE_PATH": str(packages)}
    ran = subprocess.run(
        [node, DATA / "client.cjs", *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


# -- the same body to both servers -------------------------------------------------------------------------------------

CHAT, TEXT = "chat/completions", "completions"
SAID = [{"role": "user", "content": ASKED}]
BEGUN = [*SAID, {"role": "assistant", "content": "The capital of"}]
PARTS = [{"type": "text", "text": "The capital"}, {"type": "text", "text": " of France?"}]
SAME = {
    "chat": (CHAT, {"messages": SAID}),
    "ended": (CHAT, {"messages": SAID, "max_tokens": 60}),
    "stop": (CHAT, {"messages": SAID, "stop": [" is"]}),
    "capped": (CHAT, {"messages": SAID, "model": "smollm2:capped"}),
    "persona": (CHAT, {"messages": SAID, "persona": {"cap": "capped", "report": "token", "read": ["ghost"]}}),
    "several": (CHAT, {"messages": SAID, "n": 2, "temperature": 1}),
    "logprobs": (CHAT, {"messages": SAID, "logprobs": True, "top_logprobs": 2}),
    "developer": (CHAT, {"messages": [{"role": "developer", "content": "Be brief."}, *SAID]}),
    "parts": (CHAT, {"messages": [{"role": "user", "content": PARTS}]}),
    "tools in the history": (CHAT, {"messages": AGENT}),
    "no content": (CHAT, {"messages": [*SAID, {"role": "assistant", "content": None}, *SAID]}),
    "gone on with": (CHAT, {"messages": BEGUN, "continue_final_message": True}),
    "gone on with otherwise": (CHAT, {"messages": BEGUN, "add_generation_prompt": False}),
    "too many tokens": (CHAT, {"messages": SAID, "max_tokens": 1280, "ignore_eos": True}),
    "too many of the newer name": (CHAT, {"messages": SAID, "max_completion_tokens": 10**6, "ignore_eos": True}),
    "greedy": (CHAT, {"messages": SAID, "top_p": 0, "temperature": 1}),
    "null": (CHAT, {"messages": SAID, **dict.fromkeys(("stop", "tools", "logit_bias", "user", "n", "persona", "new"))}),
    "neutral": (
        CHAT,
        {"messages": SAID, "top_k": -1, "tools": [], "tool_choice": "auto", "logit_bias": {}, "best_of": 1},
    ),
    "text": (TEXT, {"prompt": "The capital of France is"}),
    "capped text": (TEXT, {"prompt": "The capital of France is", "model": "smollm2:capped"}),
    "ids": (TEXT, {"prompt": [504, 2, 3]}),
    "texts": (TEXT, {"prompt": ["The capital of France is", "One, two,"]}),
    "no suffix": (TEXT, {"prompt": "One, two,", "suffix": "", "best_of": 1}),
    "scored": (TEXT, {"prompt": "One, two, three", "echo": True, "logprobs": 1, "max_tokens": 1}),
    "a text of too many tokens": (TEXT, {"prompt": "One, two,", "max_tokens": 1280, "ignore_eos": True}),
    "response": ("responses", {"input": ASKED, "max_output_tokens": 8, "instructions": "Be brief."}),
}
REFUSED = {
    "model": (CHAT, {"messages": SAID, "model": "gpt"}),
    "text's model": (TEXT, {"prompt": "x", "model": "gpt"}),
    "response's model": ("responses", {"input": "x", "model": "gpt"}),
    "temperature": (CHAT, {"messages": SAID, "temperature": -1}),
    "no messages": (CHAT, {}),
    "cap": (CHAT, {"messages": SAID, "persona": {"cap": "none of them"}}),
    "cap of a text": (TEXT, {"prompt": "x", "persona": {"cap": "none of them"}}),
    "long": (CHAT, {"messages": [{"role": "user", "content": "one two " * 200}]}),
    "a long text": (TEXT, {"prompt": "one two " * 200}),
    "beginning a reply and going on": (
        CHAT,
        {"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": True},
    ),
    "going on with a user's": (CHAT, {"messages": SAID, "continue_final_message": True}),
    "background": ("responses", {"input": "x", "background": True}),
}


def asked_of(at, path, body):
    defaults = {} if path == "responses" else {"max_tokens": 8}
    return httpx.post(f"{at}/v1/{path}", json={"model": "smollm2", "temperature": 0, **defaults, **body}, timeout=300)


def missing(ours, theirs, where=""):
    """What is in one answer and not in the other, or of another kind there; null may stand for anything, and be left out."""
    if ours is None or theirs is None:
        return []
    if isinstance(ours, dict) and isinstance(theirs, dict):
        absent = [f"{where}.{name}" for name, value in ours.items() if name not in theirs and value is not None]
        both = [name for name in ours if name in theirs]
        return absent + [m for name in both for m in missing(ours[name], theirs[name], f"{where}.{name}")]
    if isinstance(ours, list) and isinstance(theirs, list):
        return [m for a, b in zip(ours, theirs, strict=False) for m in missing(a, b, where)]
    kinds = [float if isinstance(v, int) and not isinstance(v, bool) else type(v) for v in (ours, theirs)]
    return [] if kinds[0] == kinds[1] else [f"{where}: {ours!r}, {theirs!r}"]


@pytest.fixture(scope="module")
def own_address(space, smollm2):
    with serving(space, smollm2, context=CONTEXT) as (at, _):
        yield at


only_vllm = pytest.mark.skipif(not VLLM_PYTHON, reason="vLLM's server is asked by `make test-vllm`")


@only_vllm
@pytest.mark.parametrize("name", SAME)
def test_the_same_body_gets_the_same_shape_limits_usage_and_greedy_text_from_both(address, own_address, name):
    path, body = SAME[name]
    answers = [asked_of(at, path, body) for at in (own_address, address)]
    assert [a.status_code for a in answers] == [200, 200], answers[1].text
    ours, theirs = (a.json() for a in answers)
    assert missing(ours, theirs) == []
    counts = {k: v for k, v in theirs["usage"].items() if isinstance(v, int)}
    assert {k: v for k, v in ours["usage"].items() if isinstance(v, int)} == counts
    if path == "responses":
        assert [i["content"] for i in ours["output"]] == [i["content"] for i in theirs["output"]]
    elif name != "several":
        said = [
            [(c.get("text") or c["message"]["content"], c["finish_reason"]) for c in a["choices"]]
            for a in (ours, theirs)
        ]
        assert said[0] == said[1]
    # Where a reply is cut short, vLLM does not feed its last token, which our own server does in order to read it.
    if ours["persona"] and theirs["persona"] and ours["persona"]["tokens_read"] == theirs["persona"]["tokens_read"]:
        assert ours["persona"]["projection"] == pytest.approx(theirs["persona"]["projection"], rel=1e-2, abs=0.1)


@only_vllm
@pytest.mark.parametrize("name", REFUSED)
def test_what_one_server_refuses_the_other_does_in_the_same_shape(address, own_address, name):
    path, body = REFUSED[name]
    ours, theirs = (asked_of(at, path, body) for at in (own_address, address))
    assert ours.status_code == theirs.status_code, theirs.text
    assert set(ours.json()["error"]) == set(theirs.json()["error"])
    assert theirs.json()["error"]["message"]
