"""The command line as a user meets it, right and wrong: its entry point, and that a process does as it does."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import personaspace as ps
from characters import characters, two_readings
from conftest import make_tokenizer
from endpoint import Endpoint
from personaspace.catalog import load_catalog
from personaspace.cli import as_typed, main
from personaspace.engines.chat import Chat
from personaspace.engines.prompts import Design, assign
from personaspace.errors import UsageError

MAP = ["--roles", "ghost,hermit,clerk,auditor", "--per-role", "4", "--max-new-tokens", "6", "--rows", "16"]


def run(*arguments: str | Path, expect: int = 0) -> SimpleNamespace:
    """What the program's entry point prints for these arguments, with its exit code."""
    printed, wrong = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(wrong):
        patch.setattr(sys, "argv", ["personaspace", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    done = SimpleNamespace(returncode=ended.value.code or 0, stdout=printed.getvalue(), stderr=wrong.getvalue())
    return checked(done, expect)


def run_alone(*arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    command = [sys.executable, "-c", "from personaspace.cli import main; main()", *map(str, arguments)]
    return checked(subprocess.run(command, capture_output=True, text=True, check=False), expect)


def checked(done: Any, expect: int) -> Any:
    """The exit code is the one expected, and a mistake gets one line."""
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    if expect:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done


@pytest.mark.long
def test_a_process_prints_and_ends_as_its_entry_point_does(tmp_path):
    for arguments, code in ((("show", "smollm2", "--json"), 0), (("show", tmp_path / "nowhere"), 1), (("map",), 2)):
        alone, here = run_alone(*arguments, expect=code), run(*arguments, expect=code)
        assert (alone.stdout, alone.stderr) == (here.stdout, here.stderr)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, tiny_folder, small_catalog) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = run("map", tiny_folder, "--out", folder, "--catalog", small_catalog, *MAP)
    assert "cosine of axis and PC1" in done.stdout
    assert "24 responses" in done.stderr  # the plan, before the first of them
    return folder


@pytest.mark.long
def test_a_folder_with_another_model_maps_with_the_same_command(mapped):
    shown = json.loads(run("show", mapped, "--json").stdout)
    assert shown["layers"] == 3
    assert shown["readings"]["prompt"]["n_responses"] == shown["n_responses"] == 96
    assert shown["readings"]["reply"]["n_responses"] == 24
    assert (mapped / "report.html").stat().st_size > 1_000_000


def test_report_writes_the_page_elsewhere(mapped, tmp_path):
    told = json.loads(run("report", mapped, "--out", tmp_path / "page.html", "--json").stdout)
    assert Path(told["report"]).read_text().startswith("<!doctype html>")


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, tiny_folder, small_catalog):
    told = run("map", tiny_folder, "--out", tmp_path / "r", "--catalog", small_catalog, *MAP, "--dry-run", "--json")
    assert json.loads(told.stdout)["responses"] == 24
    assert not (tmp_path / "r").exists()


def test_mistakes_get_one_line_and_the_right_exit_code(tmp_path, tiny_folder, small_catalog, mapped):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.gguf").write_bytes(b"GGUFnonsense")
    here = ("--out", tmp_path / "x", "--catalog", small_catalog)
    for arguments, code, told in (
        (("map", "smolm2", *here), 1, "did you mean smollm2"),
        (("map", tmp_path / "empty", *here), 1, "neither config.json nor a GGUF file"),
        (("map", tmp_path / "broken.gguf", *here), 1, "cannot read the GGUF file"),
        (("map", tiny_folder, *here, "--roles", "goast,pilot"), 1, "did you mean ghost"),
        (("map", tiny_folder, *here, "--questions", "0"), 2, "--questions 0"),
        (("map", tiny_folder, *here, "--judge", "oracle"), 2, "--judge oracle"),
        (
            ("map", tiny_folder, *here, "--layer", "9", "--max-new-tokens", "2"),
            2,
            f"--layer 9: {tiny_folder} has layers 0 to 2",
        ),
        (("map", tiny_folder, *here, "--per-role", "0"), 2, "--per-role 0"),
        (("map", tiny_folder, *here, "--dtype", "fp8"), 2, "--dtype fp8"),
        (("map", tiny_folder, "--out", mapped, "--catalog", small_catalog, *MAP, "--seed", "1"), 1, "seed: 0 → 1"),
        (("show", tmp_path / "nowhere"), 1, "no such file or folder"),
        (("map", tiny_folder, *here, "--device", "gpu"), 2, "--device gpu: not a device"),
        (("serve", "smollm2", "--record", tmp_path / "none" / "talk.jsonl"), 2, "cannot be written"),
        (("map", tiny_folder, *here, "--workers", "4"), 2, "--workers 4: it does nothing without --engine ray"),
        (("map", tiny_folder, *here, "--gpus-per-worker", "0"), 2, "it does nothing without --engine ray"),
        (("map", tiny_folder, *here, "--judge-option", "a=1"), 2, "it does nothing without --judge openai"),
        (
            ("map", tiny_folder, *here, "--judge-model", "x"),
            2,
            "it does nothing without --judge local or --judge openai",
        ),
        (("judge", tmp_path, "--judge-url", "http://x"), 2, "it does nothing without --judge openai"),
        (("judge", tmp_path, "--against-model", "x"), 2, "--against-model x: it does nothing without --against"),
        (("judge", tmp_path, "--against", "local", "--against-url", "x"), 2, "does nothing without --against openai"),
        (("experiment", "manner", "smollm2", *here, "--judge-key-env", "K"), 2, "does nothing without --judge openai"),
        (("calibrate", tmp_path, "--prompts", "9"), 2, "--prompts 9: it does nothing without --sweep"),
        (("calibrate", tmp_path, "--judge", "local"), 2, "--judge local: it does nothing without --sweep"),
        (("calibrate", tmp_path, "--sweep", "--percentile", "9"), 2, "--percentile 9: a sweep chooses"),
        (("calibrate", tmp_path, "--sweep", "--prompts", "0"), 2, "--prompts"),
        (("serve", "smollm2", "--vllm", "--max-model-len=9"), 2, "it does nothing without --engine vllm"),
        (("map", tiny_folder, *here, "--budget", "9"), 2, "--budget 9: it does nothing without --until"),
        (("map", tiny_folder, *here, "--until", "axis:2"), 2, "--until axis:2: expected reliabilities between 0 and 1"),
        (("map", tiny_folder, *here, "--keep", "some"), 2, "--keep some: expected all, sums, or layers:A:B"),
        (("map",), 2, "Missing argument"),
        (("map", "x", "--hlep"), 2, "No such option"),
    ):
        assert told in run(*arguments, expect=code).stderr


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (("--alert-turns", "0"), "--alert-turns 0: expected 1 or more"),
        (("--alert-turns=0",), "--alert-turns 0: expected 1 or more"),
        (("--turns", "0"), "alert_turns=0: expected 1 or more"),
    ],
)
def test_a_wrong_option_is_named_as_it_was_typed_and_as_python_does_where_it_was_not(typed, shown):
    assert as_typed("alert_turns=0: expected 1 or more", ["project", *typed]) == shown


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, tiny_folder, small_catalog) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    options = ["--per-role", "6", "--default-responses", "48", "--max-new-tokens", "6", "--rows", "32"]
    run("map", tiny_folder, "--out", folder, "--catalog", small_catalog, *options)
    told = run("calibrate", folder, "--of", "default", "--percentile", "50", "--layers", "1:3")
    assert "capped = default-p50@1:3" in told.stdout
    return folder


@pytest.mark.long
def test_a_second_map_keeps_what_calibration_added(calibrated, tiny_folder, small_catalog):
    options = ["--per-role", "6", "--default-responses", "48", "--max-new-tokens", "6", "--rows", "32"]
    again = json.loads(
        run("map", tiny_folder, "--out", calibrated, "--catalog", small_catalog, *options, "--json").stdout
    )
    assert again["caps"]["capped"]["is"] == "default-p50@1:3"


@pytest.mark.long
def test_a_sweep_judged_by_an_endpoint_prints_what_each_cap_does_and_draws_it(calibrated, endpoint):
    judge = ("--judge", "openai", "--judge-url", endpoint)
    told = run("calibrate", calibrated, "--sweep", "--layers", "1:3", "--prompts", "4", *judge)
    assert any("ghost" in asked for asked in Endpoint.asked)
    assert "capped = " in told.stdout
    assert "fresh prompts" in told.stdout
    assert "…" not in told.stdout, "no cell is cut short where there is no terminal"
    assert "default's touched" in told.stdout
    assert (calibrated / "calibration.html").stat().st_size > 1_000_000


def test_transcripts_are_projected_as_json_and_as_a_page(calibrated, tmp_path):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}] * 2
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(messages))
    told = json.loads(run("project", calibrated, tmp_path / "a.json", "--json", "--tokens").stdout)
    assert [t["index"] for t in told["turns"]] == [1, 3]
    assert told["notes"] == []
    assert set(told["turns"][0]) >= {"index", "tokens", "projection", "drift", "nearest", "fell", "alert", "each"}
    page = tmp_path / "page.html"
    run("project", calibrated, tmp_path / "a.json", tmp_path / "b.json", "--plot", page)
    assert page.stat().st_size > 1_000_000


def test_no_figure_of_a_conversation_is_cut_short_however_many_directions_stand_beside_it(calibrated, tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}])
    )
    names = [f"role:{name}" for name in ps.PersonaSpace.load(calibrated).roles]
    shown = run("project", calibrated, tmp_path / "a.json", "--along", ",".join(names * 3)).stdout
    assert "…" not in shown
    assert all(word in shown for word in (*names, "projection", "drift"))


def test_what_of_a_transcript_is_not_read_is_told_beside_its_figures(calibrated, tmp_path):
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "hello"},
    ]
    lines = [{"messages": talk}, {"messages": [{"role": "narrator", "content": "x"}]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = run("project", calibrated, tmp_path / "a.jsonl", "--json")
    notes = json.loads(done.stdout)["notes"]
    assert "message 1: found role 'narrator'" in notes[0]
    assert notes[1:] == [f"{tmp_path / 'a.jsonl'}: left out 1 tool message"]
    assert done.stderr.splitlines()[-2:] == notes
    with pytest.warns(UserWarning, match="not read|left out") as warned:
        ps.project(calibrated, tmp_path / "a.jsonl")
    assert [str(w.message) for w in warned if w.category is UserWarning] == notes


@pytest.mark.long
def test_a_chat_reads_its_lines_from_a_pipe(calibrated):
    command = [sys.executable, "-c", "from personaspace.cli import main; main()", "chat", calibrated, "--cap", "capped"]
    done = subprocess.run(
        [*command, "--max-new-tokens", "5"], input="hello\n/quit\n", capture_output=True, text=True, check=True
    )
    assert "drift" in done.stdout
    done = subprocess.run([*command, "--max-new-tokens", "5"], input=b"\xff\nhello\n", capture_output=True, check=True)
    assert b"this line is no UTF-8" in done.stdout
    assert b"drift" in done.stdout


def test_a_space_is_exported_and_imported(calibrated, tmp_path):
    run("export", calibrated, "--format", "gguf", "--out", tmp_path / "axis.gguf")
    run("export", calibrated, "--format", "reference", "--out", tmp_path / "files")
    run("import", tmp_path / "files", "--out", tmp_path / "back.safetensors")
    assert json.loads(run("show", tmp_path / "back.safetensors", "--json").stdout)["layers"] == 3
    run("report", tmp_path / "back.safetensors", "--out", tmp_path / "back.html")
    run("export", calibrated, "--format", "compact", "--out", tmp_path / "small.safetensors")
    whole, small = (json.loads(run("show", s, "--json").stdout) for s in (calibrated, tmp_path / "small.safetensors"))
    assert small["axis_pc1_cosine"] == pytest.approx(whole["axis_pc1_cosine"], abs=1e-3)
    assert small["default_on_pc1"] == pytest.approx(whole["default_on_pc1"], abs=1e-3)
    assert small["caps"] == whole["caps"]


@pytest.fixture(scope="module")
def unsure(tmp_path_factory) -> Path:
    """A space of two readings, the order known from prompts and not from replies."""
    folder = tmp_path_factory.mktemp("unsure")
    sure, noise = (characters(folder / n, signal) for n, signal in (("sure", 3.0), ("noise", 0.2)))
    two_readings(sure, noise).save(folder / "prompt.safetensors")
    noise.save(folder / "reply.safetensors")
    return folder


def test_show_leads_with_the_three_reliabilities_of_each_reading_and_json_has_them(unsure):
    told = run("show", unsure / "prompt.safetensors").stdout
    assert (
        told.index("How sure is this map?") < told.index("cosine of axis and PC1") < told.index("most Assistant-like")
    )
    assert "prompt: read from 216 prompts, each at its last token" in told
    assert "reply: read from 216 replies" in told
    shown = json.loads(run("show", unsure / "prompt.safetensors", "--json").stdout)
    assert list(shown["readings"]) == ["prompt", "reply"]
    assert set(shown["reliability"]) == {"axis", "order", "map"}
    assert shown["reliability"] == shown["readings"]["prompt"]["reliability"]
    assert shown["readings"]["reply"]["order_known"] is False
    assert shown["readings_agree"] is None


def test_show_ranks_no_role_where_the_order_is_not_known(unsure):
    told = run("show", unsure / "reply.safetensors").stdout
    assert "The order is not known (reliability 0." in told
    assert "Assistant-like" not in told
    names = [line.split()[0] for line in told.split("roles by name")[1].splitlines()[1:21]]
    assert names == sorted(names)
    assert "… and 4 more: --json has them all" in told


def test_mistakes_of_those_who_hold_get_one_line_too(calibrated, tmp_path):
    taken = socket.create_server(("127.0.0.1", 0))
    (tmp_path / "user.json").write_text('[{"role": "user", "content": "x"}]')
    (tmp_path / "talk.json").write_text('[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]')
    for arguments, code, told in (
        (("calibrate", calibrated, "--layers", "2:9"), 2, "--layers 2:9: the model has layers 0 to 2"),
        (("calibrate", calibrated, "--of", "ghosts"), 2, "--of ghosts: expected one of default, all"),
        (("calibrate", calibrated, "--percentile", "130"), 2, "--percentile 130: expected 0 to 100"),
        (("calibrate", "smollm2"), 2, "smollm2: calibration replays a run's replies; give the folder of a map"),
        (("project", calibrated, tmp_path / "user.json"), 2, "no assistant turn"),
        (("project", calibrated, tmp_path / "none.json"), 2, "no such file or folder"),
        (("serve", calibrated, "--port", "99999"), 2, "'--port': Input should be less than or equal to 65535"),
        (("serve", calibrated, "--port", taken.getsockname()[1]), 2, "--port 0 takes a free one"),
        (("project", "smollm2", tmp_path / "talk.json", "--model", calibrated.parent), 1, "neither config.json"),
        (("chat", calibrated, "--cap", "lid"), 1, "no cap 'lid'"),
        (("chat", calibrated, "--temperature", "-1"), 2, "--temperature -1"),
        (("export", calibrated, "--format", "pdf", "--out", tmp_path / "x"), 2, "expected one of gguf"),
        (("import", tmp_path, "--out", tmp_path / "y"), 1, ""),
    ):
        done = run(*arguments, expect=code)
        assert told in done.stderr
    taken.close()


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--framed-by", "https://a.example", "--framed-by is not there with --engine vllm"),
        ("--queue", "8", "--queue is not there with --engine vllm"),
        ("--grace", "0", "--grace is not there with --engine vllm"),
        ("--device", "cpu", "--device is not there with --engine vllm"),
        ("--dtype", "fp64", "--dtype fp64: expected one of fp32, bf16, fp16"),
    ],
)
def test_what_vllms_server_does_not_take_is_refused_and_not_dropped(option, value, told):
    done = run("serve", "smollm2", "--engine", "vllm", option, value, expect=2)
    assert told in done.stderr


def test_vllms_server_gets_keys_as_digests_a_guard_for_every_route_and_the_origins_that_were_named(monkeypatch):
    started = []

    def execve(program, arguments, environment):
        started.append((arguments, environment))
        raise UsageError("looked at")

    find = importlib.util.find_spec  # vLLM has an environment of its own
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "vllm" or find(name))
    monkeypatch.setattr("os.execve", execve)
    monkeypatch.setenv("PERSONASPACE_API_KEY", "from the environment")
    for cors in ((), ("--cors", "https://mine.example")):
        run("serve", "smollm2", "--engine", "vllm", "--host", "0.0.0.0", *cors, expect=2)
    for arguments, environment in started:
        assert "--middleware=personaspace.serve.vllm.VllmGuard" in arguments
        assert "from the environment" not in json.dumps([arguments, environment])
        outside = json.loads(environment["PERSONASPACE_OUTSIDE"])
        assert outside["keys"] == [hashlib.sha256(b"from the environment").hexdigest()]
    assert "--allowed-origins=[]" in started[0][0]
    assert '--allowed-origins=["https://mine.example"]' in started[1][0]


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_key_from_a_variable_that_was_not_set_is_refused_at_the_start(engine, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "vllm" or find(name))
    assert "--api-key is empty" in run("serve", "smollm2", "--engine", engine, "--api-key", "", expect=2).stderr
    monkeypatch.setenv("PERSONASPACE_API_KEY", "")
    assert "PERSONASPACE_API_KEY is empty" in run("serve", "smollm2", "--engine", engine, expect=2).stderr


def test_vllm_is_told_how_long_a_maps_conversations_become_and_to_leave_room_for_a_judge(
    tmp_path, tiny_folder, small_catalog, monkeypatch
):
    """vLLM has an environment of its own: here only what it would be loaded with is looked at."""
    loaded: dict[str, Any] = {}

    def load(name: str, model: str, **options: Any) -> None:
        loaded.update(options, engine=name, model=model)
        raise UsageError("looked at")

    monkeypatch.setattr("personaspace.engines.load_engine", load)
    ask = ("map", tiny_folder, "--out", tmp_path / "x", "--catalog", small_catalog, "--max-new-tokens", "40")
    run(*ask, "--engine", "vllm", "--vllm", "--enforce-eager", expect=2)
    catalog = load_catalog(small_catalog)
    asked = assign(catalog, [Design(complete=True).first_round(catalog)], 0, complete=True)[0]
    longest = max(len(Chat(make_tokenizer()).prompt_ids(p.messages)) for p in asked) + 40
    assert longest <= loaded["tokens"] <= longest + 20
    assert loaded["arguments"] == ["--enforce-eager"]
    assert "gpu_memory_utilization" not in loaded
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("personaspace.cli.maps.err", SimpleNamespace(print=lambda text, **_: said.append(text)))
        run(*ask, "--engine", "vllm", "--judge", "local", expect=2)
    assert loaded["gpu_memory_utilization"] == 0.5
    assert said[0].startswith("vLLM takes 50% of the GPU's memory: the judge is loaded beside it")
    loaded.clear()
    run(*ask, "--engine", "vllm", "--judge", "local", "--vllm", "--gpu-memory-utilization=0.7", expect=2)
    assert "gpu_memory_utilization" not in loaded
    assert "without --engine vllm" in run(*ask, "--vllm", "--x=y", expect=2).stderr


@pytest.mark.parametrize(
    ("arguments", "owner"),
    [
        (("compare", "a.safetensors", "b.safetensors", "--roles", "5"), "a model to map"),
        (("compare", "a.safetensors", "b.safetensors", "--dtype", "fp32"), "a model to map"),
        (("trait", "terse", "--describe", "Short.", "--space", "x", "--writer-model", "m"), "--writer openai"),
        (("export", "smollm2", "--format", "compact", "--out", "x", "--scale", "2"), "--format gguf"),
        (("export", "smollm2", "--format", "weights", "--out", "x", "--direction", "axis"), "--format gguf"),
        (("export", "smollm2", "--format", "gguf", "--out", "x", "--ablate", "axis"), "--format weights"),
        (("bench", "extract", "--vllm", "--x=y"), "--engine vllm"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused_by_what_it_belongs_to(arguments, owner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").touch()
    assert f"it does nothing without {owner}" in run(*arguments, expect=2).stderr
