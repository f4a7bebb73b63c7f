"""What a map will take, against arithmetic by hand; the table in the docs is what the program prints."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from personaspace.catalog import load_catalog
from personaspace.cli.progress import Bar
from personaspace.engines.prompts import Design
from personaspace.errors import ModelError, UsageError
from personaspace.mapping import plan
from personaspace.watcher import Plan
from test_cli import run

ROOT = Path(__file__).parent.parent
ASKED = plan.Workload(roles=11, questions=40, responses=1000, prompt_tokens=60_000, longest=100, new_tokens=200_000)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("google/gemma-2-27b-it", 27.2), ("Qwen/Qwen3-32B", 32.8), ("meta-llama/Llama-3.3-70B-Instruct", 70.6)],
)
def test_the_tables_shapes_have_the_models_parameters(name, billions):
    assert plan.model_of(name)[0].parameters / 1e9 == pytest.approx(billions, abs=0.1)


def test_hours_are_operations_over_peak_and_bytes_over_bandwidth():
    shape = plan.ModelShape(100, 10, 300, 4, 2, 25, 1000)
    layers = 10 * (2 * 100 * 25 * 6 + 3 * 100 * 300)
    assert (shape.in_layers, shape.parameters) == (layers, layers + 2 * 100 * 1000)
    on = plan.Hardware("x", 2, memory=1e9, bandwidth=1e15, flops=1e9, compute=0.5, rows=10)
    found = plan.predict(shape, on, ASKED)
    prompts = 60_000 * (2 * layers + 4 * 10 * 4 * 25 * 50)
    replies = 200_000 * (2 * (layers + 100 * 1000) + 4 * 10 * 4 * 25 * 200)
    assert (found["copies"], found["rows"]) == (2, 10)
    assert found["hours"] == pytest.approx((prompts + replies) / (0.5e9 * 2) / 3600)
    slow = plan.Hardware("y", 1, memory=1e9, bandwidth=1e6, flops=1e18)
    step = 2 * shape.parameters + 256 * 200 * (2 * 10 * 2 * 25 * 2)
    assert plan.predict(shape, slow, ASKED)["hours"] == pytest.approx(200_000 / 256 * step / 0.6e6 / 3600, rel=1e-6)


def test_a_model_is_spread_over_as_few_devices_as_hold_it_and_said_not_to_fit_where_none_do():
    llama = plan.model_of("meta-llama/Llama-3.3-70B-Instruct")[0]
    found = plan.predict(llama, plan.hardware_of("8xH100"), ASKED)
    assert found["devices_each"] >= 2
    assert found["devices_each"] * found["copies"] == 8
    assert plan.predict(llama, plan.hardware_of("1xA100"), ASKED)["fits"] is False
    assert "does not fit: 141 GB" in "\n".join(plan.lines("x", plan.hardware_of("A100"), ASKED, llama))


def test_disk_is_that_of_the_published_run():
    llama = plan.model_of("meta-llama/Llama-3.3-70B-Instruct")[0]
    published = plan.Workload(276, 240, 331_200, 0, 0, 331_200 * 512)
    found = plan.disk(llama, published)
    assert (found["all"] - found["replies"]) / 2 == pytest.approx(434, rel=0.01)  # in fp32 twice what it is in bf16
    assert found["sums"] < found["most"] < found["all"]


def test_beginnings_that_neighbours_share_count_once(small_catalog):
    catalog = load_catalog(small_catalog)
    asked = plan.workload_of(catalog, Design(complete=True), 8, 0)
    assert (asked.roles, asked.questions, asked.responses) == (7, 12, 6 * 5 * 12 + 10 * 12)
    longest = len("You are a auditor, number 4.What is thing 11 to you?")
    assert asked.longest >= int(longest / plan.CHARACTERS) + 2 * plan.MESSAGE
    assert asked.prompt_tokens < asked.responses * asked.longest / 2


@pytest.mark.long
def test_the_program_plans_for_hardware_that_is_not_there(tmp_path, tiny_folder):
    told = run("map", "Qwen/Qwen3-32B", "--out", tmp_path / "x", "--dry-run", "--on", "8xH100", "--json")
    found = json.loads(told.stdout)
    assert found["fits"]
    assert found["hours"] > 0
    assert len(found["assumptions"]) == 4
    here = run("map", tiny_folder, "--out", tmp_path / "x", "--dry-run", "--on", "this", "--max-new-tokens", "8").stdout
    assert "with --keep sums" in here
    assert not (tmp_path / "x").exists()
    for arguments, code, text in (
        (("Qwen/Qwen3-32B", "--dry-run", "--on", "8xH1000"), 2, "as in 8xH100"),
        (("Qwen/Qwen3-99B", "--dry-run", "--on", "8xH100"), 1, "Qwen/Qwen3-32B"),
        (("Qwen/Qwen3-32B", "--on", "8xH100"), 2, "with --dry-run"),
    ):
        assert text in run("map", *arguments, "--out", tmp_path / "x", expect=code).stderr


def test_wrong_shapes_and_hardware_are_refused():
    with pytest.raises(ModelError, match="no intermediate_size"):
        plan.ModelShape.of({"num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 1})
    with pytest.raises(UsageError, match="--on 0xH100"):
        plan.hardware_of("0xH100")


@pytest.mark.long
def test_the_table_in_the_docs_is_what_the_program_says():
    spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert module.with_table(page) == page, "run `make docs`"


def test_an_engine_that_is_not_timed_announces_no_time():
    unknown = Plan("prompts", 100, 0, 2_000, 0, None, 10**6)
    line = Bar(Console()).line(unknown)
    assert "0 s" not in line
    assert "shows once it runs" in line
    assert "nothing left to do" in Bar(Console()).line(replace(unknown, done=100))
