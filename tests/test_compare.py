"""Comparing spaces: what is the same is found to be, what is turned is turned back, what is shuffled is not found."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import personaspace as ps
from personaspace.cli import app
from personaspace.errors import SpaceError, UsageError
from personaspace.experiments.compare.findings import agreement, aligned, compare, correlation
from personaspace.experiments.compare.page import headline, write_comparison
from personaspace.runs import Run
from personaspace.space import PersonaSpace
from personaspace.space.layout import FORMAT
from personaspace.stats.correlation import pearson, spearman
from test_cli import run

NAMES = [f"role{k}" for k in range(60)]


def space(id: str, places: np.ndarray, hidden: int = 40, layers: int = 3, roles=NAMES, turn: int = 0) -> PersonaSpace:
    """Roles at the given places `[roles, 3]` in the plane of three random directions, the default at the first one's end."""
    rng = np.random.default_rng(turn)
    frame = np.linalg.qr(rng.normal(size=(hidden, 3)))[0].T
    vectors = torch.from_numpy(places @ frame + 0.01 * rng.normal(size=(len(places), hidden))).float()
    default = vectors.mean(0) + 12 * torch.from_numpy(frame[0]).float()
    vectors, default = vectors[:, None].repeat(1, layers, 1), default[None].repeat(layers, 1)
    tensors = {"role_vectors": vectors, "default_vector": default, "axis": default - vectors.mean(0)}
    meta = {"format": FORMAT, "model": {"id": id, "fingerprint": id}, "layer": 1, "roles": list(roles), "caps": {}}
    return PersonaSpace(meta, tensors)


PLACES = np.random.default_rng(7).normal(size=(60, 3)) * [5, 3, 2]


def test_the_same_characters_in_another_model_are_found_to_be_the_same():
    (pair,) = compare([("a", space("a", PLACES)), ("b", space("b", PLACES * 3, hidden=64, layers=5, turn=1))])
    assert pair.shared == 60
    assert pair.pc1.low > 0.99
    assert pair.axis.low > 0.99
    assert pair.ranking.value > 0.99
    assert pair.ends == 1
    assert pair.disparity < 0.01 < 0.8 < pair.shuffled
    assert pair.axis_cosine is None, "of models of two shapes"


@pytest.mark.long
def test_shuffled_characters_agree_no_more_than_by_chance():
    rng, x, y = np.random.default_rng(1), PLACES[:, 0], PLACES[:, 0]
    found = [correlation(NAMES, x, rng.permutation(y), pearson) for _ in range(40)]
    assert sum(e.low < 0 < e.high for e in found) >= 34, "95% intervals hold nothing in some 38 of 40"
    (pair,) = compare([("a", space("a", PLACES)), ("b", space("b", rng.permutation(PLACES), turn=1))])
    assert pair.disparity == pytest.approx(pair.shuffled, abs=0.1)


def test_the_role_that_moved_is_named_first():
    moved = PLACES.copy()
    moved[17, 0] -= 30
    (pair,) = compare([("a", space("a", PLACES)), ("b", space("b", moved))])
    assert pair.moved[0][0] == "role17"
    assert pair.moved[0][2] < pair.moved[0][1] - 2
    assert np.mean(pair.axis_cosine) > 0.9


def test_what_two_noisy_maps_could_agree_at_most_is_known_and_told_of_the_axis_alone(tmp_path):
    rng, truth = np.random.default_rng(0), PLACES.copy()
    made, error = [], 4.0
    for turn in (1, 2):
        noisy = truth + np.array([error, 0, 0]) * rng.normal(size=(60, 1))
        one = space(f"m{turn}", noisy, turn=turn)
        on = one.project(one.tensors["role_vectors"])
        half = torch.full_like(on, 1.96 * error)
        made.append(
            (
                f"m{turn}",
                PersonaSpace(one.meta, {**one.tensors, "role_interval": torch.stack([on - half, on + half], -1)}),
            )
        )
    (pair,) = compare(made)
    expected = truth[:, 0].var() / (truth[:, 0].var() + error**2)
    assert pair.ceiling == pytest.approx(expected, abs=0.15)
    assert pair.axis.low < pair.ceiling < pair.axis.high
    assert pair.without_noise is not None
    assert pair.without_noise.low < 1 < pair.without_noise.high, (
        "the same characters, once the noise of both is taken out"
    )
    assert pair.without_noise.value > pair.axis.value + 0.1
    assert f"on the axis: {pair.axis}, at most {pair.ceiling:.2f} for two maps this noisy" in headline([pair])
    low = {"order_split_half": torch.full((3,), 0.2)}
    unsure = PersonaSpace(made[0][1].meta, {**made[0][1].tensors, **low})
    assert compare([("unsure", unsure), made[1]])[0].without_noise is None, (
        "an order that is not known has no noise to take out"
    )
    page = write_comparison(tmp_path / "page.html", made, [pair]).read_text()
    (table,) = [t for t in re.findall(r"<thead>.*?</tbody>", page, re.DOTALL) if "shared roles" in t]
    under = dict(zip(re.findall("<th>(.*?)</th>", table), re.findall("<td>(.*?)</td>", table), strict=True))
    assert (under["at most"], under["ranking"]) == (f"{pair.ceiling:.2f}", str(pair.ranking))


def test_only_roles_that_both_have_count_and_too_few_are_refused():
    few = space("b", PLACES[:30], roles=NAMES[:30])
    (pair,) = compare([("a", space("a", PLACES)), ("b", few)])
    assert pair.shared == 30
    with pytest.raises(UsageError, match="a and b share 0 roles"):
        compare([("a", space("a", PLACES)), ("b", space("b", PLACES, roles=[n.upper() for n in NAMES]))])
    with pytest.raises(UsageError, match="two spaces"):
        compare([("a", few)])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_a_map_that_is_turned_moved_and_scaled_is_turned_back(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, 3))
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    a, b, left = aligned(x, 5 * x @ turned + 3)
    assert left == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_correlations_are_those_of_a_plain_loop_and_of_ranks():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.normal(size=50)
    mx, my = sum(x) / 50, sum(y) / 50
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    under = (sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)) ** 0.5
    assert pearson(x, y) == pytest.approx(top / under)
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert np.isnan(pearson(x, np.ones(50)))


def test_maps_by_chance_leave_nearly_everything_unexplained():
    rng = np.random.default_rng(3)
    left, shuffled = agreement(rng.normal(size=(200, 3)), rng.normal(size=(200, 3)))
    assert left > 0.9
    assert shuffled > 0.9


def test_the_command_prints_the_figure_and_writes_the_page(tmp_path):
    for name, turn in (("one", 0), ("two", 1)):
        space(f"me/{name}", PLACES, turn=turn).save(tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{n}.safetensors") for n in ("one", "two")]
    page = tmp_path / "page.html"
    told = CliRunner().invoke(app, ["compare", *files, "--out", str(page)]).output
    assert "one and two, 60 roles" in told
    assert "The study: above 0.92" in told
    assert "one beside two" in page.read_text()
    found = json.loads(CliRunner().invoke(app, ["compare", *files, "--out", str(page), "--json"]).output)
    assert found["pairs"][0]["pc1"]["value"] > 0.99


def test_where_an_order_is_not_known_neither_its_ranking_nor_who_moved_is_told(tmp_path):
    sure, unsure = space("sure", PLACES), space("unsure", PLACES, turn=1)
    for one, order, likeness in ((sure, 0.9, 0.8), (unsure, 0.3, 0.2)):
        for name, value in (("axis", 0.95), ("order", order), ("map", likeness)):
            one.tensors[f"{name}_split_half"] = torch.full((3,), value / (2 - value))
    spaces = [("sure", sure), ("unsure", unsure)]
    pairs = compare(spaces)
    assert pairs[0].unknown == ["unsure"]
    assert pairs[0].reliability[1]["map"] == pytest.approx(0.2)
    assert "The order of the roles in unsure is not known (reliability under 0.7)" in headline(pairs)
    page = write_comparison(tmp_path / "page.html", spaces, pairs).read_text()
    text = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert text.index("How sure is each map?") < text.index("on the map of")
    assert "of the roles&#39; squared distances, 80% is noise" in text
    assert text.count("not known<div") == 2, "the ranking and the ends"
    after = text[text.index("Moved most") :]
    assert "<td>" not in after, "nobody is named to have moved"
    assert "not known" not in headline(compare([("a", sure), ("b", sure)]))
    for name, one in spaces:
        one.save(tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name, _ in spaces]
    told = CliRunner().invoke(app, ["compare", *files, "--out", str(tmp_path / "p.html")]).output
    assert "unsure, from replies: axis 0.95, order 0.30 (not known), map 0.20 (not known)" in told
    assert "moved most: not known, as is the order in unsure" in told


@pytest.mark.long
def test_a_base_its_fine_tune_and_its_adapter_are_mapped_on_the_same_prompts_and_compared(
    tmp_path, tiny_folder, small_catalog
):
    pytest.importorskip("peft")
    from test_adapters import trained

    tuned = tmp_path / "tuned"
    shutil.copytree(tiny_folder, tuned)
    weights = load_file(tuned / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    moved = {name: t + 0.02 * torch.randn(t.shape, generator=generator) for name, t in weights.items()}
    save_file(moved, tuned / "model.safetensors", {"format": "pt"})
    adapter = trained(tmp_path / "lora", tiny_folder, 1)
    models = [str(tiny_folder), str(tuned), f"{tiny_folder} + {adapter}"]
    options = ["--catalog", str(small_catalog), "--prompts-per-role", "6", "--out", str(tmp_path / "out")]
    told = run("compare", *models, *options, "--json")
    pairs = json.loads(told.stdout)["pairs"]
    assert [p["shared"] for p in pairs] == [6, 6, 6]
    assert all(p["readings"] == ["prompt", "prompt"] for p in pairs)
    assert "moved" in pairs[0]
    runs = [Run(folder) for folder in sorted((tmp_path / "out").iterdir()) if folder.is_dir()]
    configs = [r.manifest()["config"] for r in runs]
    assert len({c["model"]["fingerprint"] for c in configs}) == 3
    assert len({(c["catalog"]["fingerprint"], c["seed"]) for c in configs}) == 1
    asked = [
        [row for shard in r.onsets.done() for row in r.onsets.read(shard, ["role", "system", "user"]).to_pylist()]
        for r in runs
    ]
    assert asked[0] == asked[1] == asked[2] != []
    # In Python it goes on with what is there, and reads nothing anew; a space that is there is taken as it is.
    before = {path: path.stat().st_mtime_ns for r in runs for path in r.folder.rglob("*.safetensors")}
    how = {"catalog": small_catalog, "prompts_per_role": 6}
    (pair,) = ps.compare({models[0]: models[0], "lora": PersonaSpace.load(runs[0].folder)}, out=tmp_path / "out", **how)
    assert pair.shared == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_name_that_is_neither_a_space_nor_a_model_is_one_line(tmp_path, tiny_folder):
    with pytest.raises(UsageError, match="a model is mapped to be compared; give a folder for that"):
        ps.compare({"a": "smollm2", "b": tiny_folder})
    with pytest.raises(UsageError, match="neither a space nor a model"):
        ps.compare({"a": "smollm2", "b": str(tmp_path / "none")}, out=tmp_path / "out")
    with pytest.raises(SpaceError, match="no such file"):
        ps.compare({"a": tmp_path / "a.safetensors", "b": "smollm2"})
    with pytest.raises(SpaceError, match=r"no space\.safetensors in the folder"):
        ps.compare({"a": tmp_path, "b": "smollm2"})
