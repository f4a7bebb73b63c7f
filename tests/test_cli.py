"""The command line as a user meets it: in a process of its own, right and wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MAP = ["--roles", "ghost,hermit,clerk,auditor", "--per-role", "4", "--max-new-tokens", "6", "--rows", "16"]


def run(*arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from personaspace.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    if expect:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, tiny_folder, small_catalog) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = run("map", tiny_folder, "--out", folder, "--catalog", small_catalog, *MAP)
    assert "cosine of axis and PC1" in done.stdout
    assert "24 responses" in done.stderr  # the plan, before the first of them
    return folder


def test_a_folder_with_another_model_maps_with_the_same_command(mapped):
    shown = json.loads(run("show", mapped, "--json").stdout)
    assert shown["layers"] == 3
    assert shown["n_responses"] == 24
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
        (("map", tiny_folder, *here, "--layer", "9", "--max-new-tokens", "2"), 2, "layers 0 to 2"),
        (("map", tiny_folder, *here, "--per-role", "0"), 2, "--per-role 0"),
        (("map", tiny_folder, *here, "--dtype", "fp8"), 2, "--dtype fp8"),
        (("map", tiny_folder, "--out", mapped, "--catalog", small_catalog, *MAP, "--seed", "1"), 1, "seed: 0 → 1"),
        (("show", tmp_path / "nowhere"), 1, "no such file or folder"),
        (("map",), 2, "Missing argument"),
        (("map", "x", "--hlep"), 2, "No such option"),
    ):
        assert told in run(*arguments, expect=code).stderr


def test_every_command_has_help_with_an_example():
    for command in ("map", "show", "report", "bench"):
        assert "Example: personaspace" in run(command, "--help").stdout
