"""The study's published files from a stand-in of the Hub: a space with its caps and traits, and one line for what is wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub.constants
import pytest
import torch
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from personaspace.cli import app
from personaspace.errors import SpaceError, UsageError
from personaspace.formats import export_space, fetch_reference, import_space, read_reference, unknown
from personaspace.serve.metrics import PersonaMetrics
from personaspace.serve.persona import Reader
from personaspace.serve.types import Persona
from personaspace.space import PersonaSpace

SOURCE = "hf://datasets/owner/vectors"
COMMIT = "1" * 40
HIDDEN = 6
QWEN, LLAMA, GEMMA = "qwen-3-32b", "llama-3.3-70b", "gemma-2-27b"
LAYERS = {QWEN: 64, LLAMA: 80, GEMMA: 46}
WINDOWS = {QWEN: [(44, 52), (46, 54)], LLAMA: [(46, 54), (56, 72)], GEMMA: []}
PERCENTILES = ("0.01", "0.25")


def publish(folder: Path) -> Path:
    """A folder of the dataset's shape, in bf16: a tensor `[layers, hidden]` a file; capping vectors of every layer that point
    away from the Assistant, and experiments that cap windows of them. Gemma's has no capping."""
    layers = LAYERS[folder.name]
    generator = torch.Generator().manual_seed(layers)

    def save(name: str) -> torch.Tensor:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        vector = torch.randn(layers, HIDDEN, generator=generator).bfloat16()
        torch.save(vector, folder / f"{name}.pt")
        return vector

    axis = save("assistant_axis")
    for name in ("default_vector", "role_vectors/bard", "role_vectors/clerk", "role_vectors/ghost"):
        save(name)
    for trait in ("calm", "droll"):
        save(f"trait_vectors/{trait}")
    if windows := WINDOWS[folder.name]:
        keys = [f"layer_{k}/contrast_role_pos3_default1" for k in range(layers)]
        vectors = {key: {"layer": k, "vector": -axis[k]} for k, key in enumerate(keys)}
        experiments = [
            {
                "id": f"layers_{first}:{end}-p{percentile}",
                "interventions": [{"vector": keys[k], "cap": -k / 40 - float(percentile)} for k in range(first, end)],
            }
            for first, end in windows
            for percentile in PERCENTILES
        ]
        torch.save({"vectors": vectors, "experiments": experiments}, folder / "capping_config.pt")
    return folder


class Hub(BaseHTTPRequestHandler):
    """The Hub's endpoints that a download of a data set uses; root: its files; lost: names that it lists, but doesn't have."""

    root: Path
    lost: set[str]
    fetched: list[str]

    def log_message(self, *_: object) -> None: ...

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        files = {p.relative_to(self.root).as_posix(): p for p in sorted(self.root.rglob("*")) if p.is_file()}
        api, place = "/api/datasets/owner/vectors", path.removeprefix(f"/datasets/owner/vectors/resolve/{COMMIT}/")
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            listed = [{"rfilename": name} for name in files]
            self.answer(json.dumps({"id": "owner/vectors", "sha": COMMIT, "siblings": listed}).encode())
        elif path == f"{api}/tree/{COMMIT}":
            sizes = {name: file.stat().st_size for name, file in files.items()}
            entries = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
            self.answer(json.dumps(entries).encode())
        elif place in files and place not in self.lost:
            if self.command == "GET":
                self.fetched.append(place)
            data = files[place].read_bytes()
            self.answer(data, ETag=f'"{abs(hash(data)):x}"', X_Repo_Commit=COMMIT)
        elif path.startswith(api):
            self.answer(b"{}", 404, X_Error_Code="RevisionNotFound")
        else:
            kind = "RepoNotFound" if path.startswith("/api/") else "EntryNotFound"
            self.answer(b"{}", 401 if kind == "RepoNotFound" else 404, X_Error_Code=kind)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[type[Hub]]:
    """A stand-in that the Hub's client speaks to, with a cache of its own; no proxy, no token, no Xet."""
    handler = type("Server", (Hub,), {"root": tmp_path / "hub", "lost": set(), "fetched": []})
    for folder in LAYERS:
        publish(tmp_path / "hub" / folder)
    (tmp_path / "hub" / "README.md").write_text("not read")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_folder_of_a_model_comes_from_the_hub_as_it_comes_from_the_disk(hub, tmp_path):
    space = import_space(f"{SOURCE}/{QWEN}", "Qwen/Qwen3-32B")
    local = import_space(tmp_path / "hub" / QWEN, "Qwen/Qwen3-32B")
    assert space.tensors.keys() == local.tensors.keys()
    assert all(torch.equal(tensor, local.tensors[name]) for name, tensor in space.tensors.items())
    provenance = space.meta.pop("provenance")
    assert provenance == {**local.meta.pop("provenance"), "source": f"{SOURCE}/{QWEN}", "commit": COMMIT}
    assert space.meta == local.meta
    assert (space.layer, space.roles) == (32, ["bard", "clerk", "ghost"])
    assert {name.split("/")[0] for name in hub.fetched} == {QWEN}


def test_what_a_folder_holds_beside_the_studys_files_is_not_fetched(hub, tmp_path):
    (tmp_path / "hub" / QWEN / "responses").mkdir()
    for name in ("responses/all.pt", "model.bin", "other.pt"):
        (tmp_path / "hub" / QWEN / name).write_bytes(b"much")
    folder, commit = fetch_reference(f"{SOURCE}@main/{QWEN}/")
    assert (folder.name, commit) == (QWEN, COMMIT)
    assert len(hub.fetched) == len(list(folder.rglob("*.pt"))) == 8


@pytest.mark.parametrize(
    ("folder", "capped", "layers"),
    [(QWEN, "layers_46:54-p0.25", range(46, 54)), (LLAMA, "layers_56:72-p0.25", range(56, 72)), (GEMMA, None, ())],
)
def test_each_experiment_is_a_named_cap_and_the_studys_choice_is_capped(tmp_path, folder, capped, layers):
    space = read_reference(publish(tmp_path / folder))
    names = [f"layers_{first}:{end}-p{p}" for first, end in WINDOWS[folder] for p in PERCENTILES]
    assert list(space.caps) == (["capped", *names] if capped else [])
    if capped:
        assert space.caps["capped"]["is"] == capped
        assert space.cap().layers == tuple(layers)
        assert space.cap() == space.cap(capped)


@pytest.mark.parametrize("folder", [QWEN, LLAMA])
def test_a_floor_changes_a_stream_as_the_published_ceiling_on_the_opposite_vector_does(tmp_path, folder):
    config = torch.load(publish(tmp_path / folder) / "capping_config.pt", weights_only=True)
    read_reference(tmp_path / folder).save(tmp_path / "space.safetensors")
    space = PersonaSpace.load(tmp_path / "space.safetensors")
    stream = 3 * torch.randn(200, HIDDEN, generator=torch.Generator().manual_seed(1))
    for experiment in config["experiments"]:
        ours = space.cap(experiment["id"])
        for step in experiment["interventions"]:
            held = config["vectors"][step["vector"]]
            away = held["vector"].float()
            away = away / away.norm()
            over = (stream @ away - step["cap"]).clamp(min=0)
            assert torch.allclose(ours.apply(stream, held["layer"]), stream - over[:, None] * away, atol=1e-4)
            assert 0 < (over > 0).sum() < 200
            assert float(space.axis_at(held["layer"]) @ away) == pytest.approx(-1, abs=1e-5)


def test_an_experiment_along_another_vector_is_no_cap_and_goes_out_as_it_came(tmp_path):
    path = publish(tmp_path / QWEN) / "capping_config.pt"
    config = torch.load(path, weights_only=True)
    config["vectors"]["layer_1/other"] = {"layer": 1, "vector": torch.randn(HIDDEN)}
    config["experiments"].append({"id": "other", "interventions": [{"vector": "layer_1/other", "cap": 0.5}]})
    torch.save(config, path)
    space = read_reference(tmp_path / QWEN)
    assert "other" not in space.caps
    export_space(space, "reference", tmp_path / "out")
    again = torch.load(tmp_path / "out" / "capping_config.pt", weights_only=True)
    assert again["experiments"] == config["experiments"]
    assert all(torch.equal(again["vectors"][name]["vector"], v["vector"]) for name, v in config["vectors"].items())


def test_of_several_caps_none_is_capped_where_the_study_recommends_none(tmp_path):
    path = publish(tmp_path / QWEN) / "capping_config.pt"
    config = torch.load(path, weights_only=True)
    config["experiments"] = [e for e in config["experiments"] if e["id"].startswith("layers_44:52")]
    torch.save(config, path)
    assert list(read_reference(tmp_path / QWEN).caps) == ["layers_44:52-p0.01", "layers_44:52-p0.25"]
    torch.save({**config, "experiments": config["experiments"][:1]}, path)
    assert read_reference(tmp_path / QWEN).caps["capped"]["is"] == "layers_44:52-p0.01"


def test_traits_lie_in_the_saved_space_under_their_names(tmp_path):
    read_reference(publish(tmp_path / QWEN)).save(tmp_path / "space.safetensors")
    space = PersonaSpace.load(tmp_path / "space.safetensors")
    assert space.meta["traits"] == ["calm", "droll"]
    droll = torch.load(tmp_path / QWEN / "trait_vectors" / "droll.pt", weights_only=True)
    assert torch.equal(space.tensors["trait_vectors"][1], droll.float())


def test_a_server_holds_by_the_published_cap_and_places_replies_without_a_drift(tmp_path):
    space = read_reference(publish(tmp_path / QWEN), "Qwen/Qwen3-32B")
    reader = Reader.of(space, "qwen")
    assert reader.models[:2] == ["qwen", "qwen:capped"]
    assert reader.treatment("qwen:capped", Persona()) == ((space.cap(),), None)
    turn = reader.turn(space.tensors["role_vectors"][2, space.layer], 5, 0)
    assert turn is not None
    assert (turn.persona["nearest"][0][0], turn.persona["drift"], turn.persona["alert"]) == ("ghost", None, None)
    described = reader.describe({}, {})
    assert described["caps"]["capped"]["is"] == "layers_46:54-p0.25"
    assert not described["steer"]
    PersonaMetrics(space, CollectorRegistry())


def test_vectors_alone_leave_unknown_what_a_calibrated_map_knows(tmp_path):
    names = [name.split(" (")[0] for name in unknown(read_reference(publish(tmp_path / QWEN)))]
    assert names == ["drift", "alerts", "reliabilities", "α of steering"]
    assert unknown(PersonaSpace.load("smollm2")) == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (f"{SOURCE}/qwen-3-32", f"no role_vectors/*.pt and no assistant_axis.pt .* in {GEMMA}, {LLAMA}, {QWEN}$"),
        (SOURCE, f"no role_vectors/*.pt .* in {GEMMA}, {LLAMA}, {QWEN}$"),
        ("hf://datasets/owner/vector/qwen-3-32b", "the Hub has no data set owner/vector .*check the name"),
        (
            "hf://owner/vectors/qwen-3-32b",
            "the Hub has no model owner/vectors .*hf://datasets/OWNER/NAME is another kind",
        ),
        (f"{SOURCE}@old/{QWEN}", "owner/vectors has no such revision"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_what_there_is(hub, source, reason):
    with pytest.raises(SpaceError, match=reason.replace("/*", "/[*]")) as error:
        import_space(source)
    assert str(error.value).startswith(f"{source}: ")
    assert "\n" not in str(error.value)
    assert not hub.fetched


@pytest.mark.parametrize("source", ["hf://datasets/owner", f"{SOURCE}/../x", "hf://datasets/owner/na me/x", "hf://"])
def test_an_address_of_another_kind_is_told_how_one_looks(source):
    with pytest.raises(UsageError, match="expected hf://datasets/OWNER/NAME/FOLDER, as in hf://datasets/lu-christina/"):
        import_space(source)


def test_a_folder_without_roles_or_axis_is_refused_before_anything_is_fetched(hub, tmp_path):
    for name in ("assistant_axis", "default_vector"):
        (tmp_path / "hub" / QWEN / f"{name}.pt").unlink()
    with pytest.raises(SpaceError, match=f"{QWEN}: no assistant_axis.pt or default_vector.pt there"):
        import_space(f"{SOURCE}/{QWEN}")
    assert not hub.fetched


def test_a_file_that_is_listed_but_not_there_is_named_in_one_line(hub):
    hub.lost.add(f"{QWEN}/role_vectors/ghost.pt")
    with pytest.raises(SpaceError, match=f"{QWEN}: .*{QWEN}/role_vectors/ghost.pt is listed in owner/vectors") as error:
        import_space(f"{SOURCE}/{QWEN}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["assistant_axis", "role_vectors/ghost", "capping_config"])
def test_a_damaged_file_is_named_in_one_line(hub, tmp_path, name):
    path = tmp_path / "hub" / QWEN / f"{name}.pt"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SpaceError, match=rf"{name}.pt: not a whole .pt file") as error:
        import_space(f"{SOURCE}/{QWEN}")
    assert "\n" not in str(error.value)


def test_without_the_hub_one_line_says_so_also_where_a_part_is_in_the_cache(hub, monkeypatch):
    hub.lost.add(f"{QWEN}/role_vectors/ghost.pt")
    with pytest.raises(SpaceError):
        import_space(f"{SOURCE}/{QWEN}")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SpaceError, match=r"the Hub cannot be reached \(.*\); a folder of files") as error:
        import_space(f"{SOURCE}/{QWEN}")
    assert "\n" not in str(error.value)


def test_the_command_writes_a_space_beside_it_and_says_what_is_in_it_and_what_is_not(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["import", f"{SOURCE}/{QWEN}", "--model", "Qwen/Qwen3-32B"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.stdout.splitlines() == [
        f"space: {QWEN}.safetensors",
        "3 roles, 2 traits, layer 32 of 64",
        "caps: 4; capped is layers_46:54-p0.25: the study recommends it",
        "not known from vectors alone: drift (moments and quantiles of the default's replies), alerts, reliabilities, α of "
        "steering (the residual stream's norms); `personaspace map Qwen/Qwen3-32B` and `calibrate` measure them, with a few "
        "hundred prompts, in a space of their own",
    ]
    assert PersonaSpace.load(f"{QWEN}.safetensors").meta["model"]["id"] == "Qwen/Qwen3-32B"
    fetched = list(hub.fetched)
    with pytest.raises(UsageError, match=f"{QWEN}.safetensors: is there already; `--out {QWEN}.safetensors` writes it"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    result = CliRunner().invoke(app, [*arguments, "--out", f"{QWEN}.safetensors", "--json"], catch_exceptions=False)
    facts = json.loads(result.stdout)
    assert (facts["n_roles"], facts["n_traits"], facts["caps"][0], len(facts["unknown"])) == (3, 2, "capped", 4)
    assert hub.fetched == fetched
