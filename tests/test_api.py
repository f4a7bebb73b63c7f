"""What the command line does, as one call each."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import personaspace as ps
from conftest import make_model, make_tokenizer
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import DesignError, UsageError
from personaspace.runs import Run
from planted import PlantedEngine, planted_space


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine(make_model("llama"), make_tokenizer(), id="tiny", rows=16)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, small_catalog, engine):
    folder = tmp_path_factory.mktemp("api")
    ps.map(
        engine, folder, catalog=small_catalog, read="reply", per_role=6, default_responses=48, max_new_tokens=6, layer=1
    )
    return folder


def test_calibration_names_the_floor_asked_for_and_keeps_it_in_the_runs_space(mapped, engine):
    made = ps.calibrate(mapped, of="all", percentile=50, layers=range(1, 3), engine=lambda: engine)
    assert made.space.meta["caps"]["capped"]["is"] == "all-p50@1:3"
    assert ps.PersonaSpace.load(Run(mapped).space_file).meta["caps"] == made.space.meta["caps"]
    assert (made.page, list(made.outcomes)) == (None, [])


def test_calibration_of_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"give the folder of a map"):
        ps.calibrate(tmp_path)


def test_conversations_are_projected_from_files_and_an_uncalibrated_space_has_no_rule(tmp_path, engine, mapped):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}] * 2
    (tmp_path / "talk.json").write_text(json.dumps(talk))
    plain = ps.PersonaSpace.load(mapped).compact()
    tensors = {name: t for name, t in plain.tensors.items() if not name.startswith("beginnings")}
    (projected,), rule = ps.project(ps.PersonaSpace(plain.meta, tensors), tmp_path / "talk.json", engine=engine)
    assert (projected.name, [t.index for t in projected.turns], rule) == ("talk", [1, 3], None)


def test_spaces_are_compared_by_the_names_given(tmp_path):
    (pair,) = ps.compare({"before": planted_space(), "after": planted_space()})
    assert (pair.first, pair.second) == ("before", "after")
    assert pair.axis.value == pytest.approx(1)


def test_an_experiment_is_one_call_and_the_same_call_goes_on(tmp_path):
    asked = PlantedEngine(lambda messages, rng: rng.normal())
    small = {"alphas": "0", "caps": "", "roles": 2, "probes": 1, "max_new_tokens": 4, "control_alphas": ""}
    first = ps.experiment("susceptibility", planted_space(), tmp_path, engine=asked, **small)
    count = asked.asked
    again = ps.experiment("susceptibility", planted_space(), tmp_path, engine=asked, **small)
    assert (again.headline, asked.asked) == (first.headline, count)
    assert json.loads((tmp_path / "results.json").read_text())["headline"] == first.headline
    with pytest.raises(UsageError, match="--roles x"):
        ps.experiment("susceptibility", planted_space(), tmp_path, engine=asked, roles="x")


def test_an_engine_that_reads_nothing_but_zeros_is_told_so_in_one_line(small_catalog, tmp_path, tiny):
    class Numb(TransformersEngine):
        def _onsets(self, ids, options):
            for place, activation in super()._onsets(ids, options):
                yield place, torch.zeros_like(activation)

    engine = Numb(tiny.model, tiny.tokenizer, id="numb")
    with pytest.raises(DesignError, match="all alike"):
        ps.map(engine, tmp_path, catalog=small_catalog, read="prompt")


def test_an_engines_name_that_is_nearly_one_is_suggested():
    with pytest.raises(UsageError, match="did you mean transformers"):
        ps.load_engine("transformer", "smollm2")


def test_the_package_is_a_module_to_run():
    done = subprocess.run([sys.executable, "-m", "personaspace", "--help"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "experiment" in done.stdout
