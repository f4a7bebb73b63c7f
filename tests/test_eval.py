"""Common clients and evaluation tools, unmodified, against the server: small tasks on the embedded model, plain and capped."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import httpx
import pytest
import torch

from personaspace.model.residual import attach
from personaspace.space import PersonaSpace
from served import serving

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


@pytest.fixture(scope="module")
def address(space, smollm2):
    with serving(space, smollm2, max_tokens=64) as (at, _):
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
def test_lm_evals_ifeval_runs_as_it_is_on_prompts_of_our_own(space, smollm2, ifeval):
    """The Hub's 541 prompts are not here; a dozen of the same fields are. It asks for 1,280 tokens, and gets 24."""
    with serving(space, smollm2, max_tokens=24) as (at, _):
        results, samples = lm_eval(
            "local-chat-completions",
            "ifeval",
            chat=True,
            include=ifeval,
            model="smollm2:capped",
            base_url=f"{at}/v1/chat/completions",
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
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("provider", "own"),
    [("openai", {"responses_api": False}), ("openai", {}), ("openai-api/personaspace", {})],
    ids=["chat", "responses", "any"],
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
