"""The study's published files, control vectors and the Hub: what goes out comes back, and nothing foreign is run."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, GGUFWriter

from personaspace.errors import SpaceError, UsageError
from personaspace.formats import export_space, import_space, push, read_capping, read_control_vector, write_capping
from personaspace.formats.hub import model_card
from personaspace.model.interventions import Cap
from personaspace.space import PersonaSpace

LAYERS, HIDDEN = 4, 8
ROLES = ["bard", "clerk", "ghost", "judge", "whale"]


def publish(folder: Path, form: str = "tensor", dtype: torch.dtype = torch.float32) -> Path:
    """A folder as published: roles, traits, axis, default, and capping along the negated axis and along another vector."""
    generator = torch.Generator().manual_seed(0)

    def vector(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def save(name: str, values: torch.Tensor, kind: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        whole = {"vector": values, "type": kind, "role": Path(name).name} if form == "dict" else values
        torch.save(whole, folder / f"{name}.pt")

    axis = vector(LAYERS, HIDDEN)
    save("assistant_axis", axis, "axis")
    save("default_vector", vector(LAYERS, HIDDEN), "mean")
    for role in ROLES:
        save(f"role_vectors/{role}", vector(LAYERS, HIDDEN), "pos_3")
    for trait in ("calm", "droll"):
        save(f"trait_vectors/{trait}", vector(LAYERS, HIDDEN), "pos_neg_50")
    away = {f"layer_{k}/contrast": {"vector": -axis[k].clone(), "layer": k} for k in (2, 3)}
    capped = [{"vector": name, "cap": 1.5 + held["layer"]} for name, held in away.items()]
    other = {"layer_1/other": {"vector": vector(HIDDEN), "layer": 1}}
    experiments = [
        {"id": "layers_2:4-p0.25", "interventions": capped},
        {"id": "other", "interventions": [{"vector": "layer_1/other", "cap": 0.5}]},
        {"id": "steering", "interventions": [{"vector": "layer_1/other", "coeff": 2.0}]},
    ]
    torch.save({"vectors": {**away, **other}, "experiments": experiments}, folder / "capping_config.pt")
    return folder


def same(a: object, b: object) -> bool:
    """Equal with its types, dtypes, shapes, and the order of its keys."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def files(folder: Path) -> dict[str, object]:
    return {str(p.relative_to(folder)): torch.load(p, weights_only=True) for p in sorted(folder.rglob("*.pt"))}


@pytest.fixture
def space(tmp_path) -> PersonaSpace:
    return import_space(publish(tmp_path / "published"), model="owner/tiny")


@pytest.mark.parametrize("form", ["tensor", "dict"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_files_go_in_and_out_through_a_saved_space_with_nothing_changed(tmp_path, form, dtype):
    before = publish(tmp_path / "before", form, dtype)
    import_space(before).save(tmp_path / "space.safetensors")
    export_space(PersonaSpace.load(tmp_path / "space.safetensors"), "reference", tmp_path / "after")
    assert same(files(tmp_path / "after"), files(before))
    assert {p.name for p in tmp_path.iterdir()} == {"before", "after", "space.safetensors"}
    assert max(p.stat().st_size for p in (tmp_path / "after").rglob("*.pt")) < 10_000  # views saved as copies


def test_an_imported_space_has_the_published_axis_layer_roles_and_components(space, tmp_path):
    published = files(tmp_path / "published")
    summary = space.summary()
    assert (space.layer, space.roles, summary["layers"], summary["hidden_size"]) == (2, ROLES, LAYERS, HIDDEN)
    assert torch.equal(space.tensors["axis"], published["assistant_axis.pt"])
    assert torch.equal(space.tensors["trait_vectors"][1], published["trait_vectors/droll.pt"])
    assert summary["axis_pc1_cosine"] >= 0
    assert import_space(tmp_path / "published", layer=0).layer == 0
    with pytest.raises(SpaceError, match=r"layer 4: .* layers 0 to 3"):
        import_space(tmp_path / "published", layer=4)


def pipeline(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """What the study's pipeline leaves: vectors of roles and the default, the axis with the means it was taken from."""
    generator = torch.Generator().manual_seed(1)
    (folder / "vectors").mkdir(parents=True)
    vectors = {name: torch.randn(LAYERS, HIDDEN, generator=generator).to(dtype) for name in ("default", *ROLES)}
    for name, vector in vectors.items():
        kind = "mean" if name == "default" else "pos_3"
        torch.save({"vector": vector, "type": kind, "role": name}, folder / "vectors" / f"{name}.pt")
    role_mean = torch.stack([vectors[name] for name in ROLES]).mean(0)
    axis = {"axis": vectors["default"] - role_mean, "default_mean": vectors["default"], "role_mean": role_mean}
    torch.save({**axis, "n_default": 1, "n_roles": len(ROLES)}, folder / "axis.pt")
    return folder


def test_what_the_studys_pipeline_writes_is_imported_and_comes_back_from_the_published_form(tmp_path):
    folder = pipeline(tmp_path / "outputs")
    space = import_space(folder, "owner/tiny")
    written = files(folder)
    assert space.roles == ROLES
    assert torch.equal(space.tensors["axis"], written["axis.pt"]["axis"].float())
    assert torch.equal(space.tensors["default_vector"], written["vectors/default.pt"]["vector"].float())
    assert torch.equal(space.tensors["role_vectors"][2], written["vectors/ghost.pt"]["vector"].float())
    space.save(tmp_path / "space.safetensors")
    export_space(PersonaSpace.load(tmp_path / "space.safetensors"), "reference", tmp_path / "published")
    again = import_space(tmp_path / "published")
    assert files(tmp_path / "published")["role_vectors/ghost.pt"]["type"] == "pos_3"
    assert again.roles == ROLES
    for name, tensor in space.tensors.items():
        assert torch.equal(again.tensors[name], tensor), name


@pytest.mark.parametrize("missing", ["axis.pt", "vectors/default.pt"])
def test_of_the_pipelines_axis_and_default_one_may_be_missing(tmp_path, missing):
    folder = pipeline(tmp_path / "outputs", torch.float32)
    expected = import_space(folder)
    (folder / missing).unlink()
    space = import_space(folder)
    assert space.roles == ROLES
    for name in ("axis", "default_vector"):
        assert torch.allclose(space.tensors[name], expected.tensors[name], atol=1e-6)


def test_an_axis_of_the_pipelines_that_is_a_bare_tensor_is_read_and_a_wrong_vector_is_named(tmp_path):
    folder = pipeline(tmp_path / "outputs", torch.float32)
    axis = torch.load(folder / "axis.pt", weights_only=True)["axis"]
    torch.save(axis, folder / "axis.pt")
    assert torch.equal(import_space(folder).tensors["axis"], axis)
    torch.save({"vector": axis[:2], "role": "clerk", "type": "pos_3"}, folder / "vectors" / "clerk.pt")
    with pytest.raises(SpaceError, match=r"clerk.pt: found shape \[2, 8\], expected \[4, 8\] as in axis.pt"):
        import_space(folder)
    torch.save({"vector": axis, "role": "clerk", "type": "pos_3"}, folder / "vectors" / "clerk.pt")
    for path in (folder / "axis.pt", folder / "vectors" / "default.pt"):
        path.unlink()
    with pytest.raises(SpaceError, match=r"or as its pipeline writes them \(vectors/ROLE.pt and axis.pt\)"):
        import_space(folder)


@pytest.mark.parametrize("name", ["assistant_axis", "role_vectors/ghost", "capping_config"])
@pytest.mark.parametrize("content", [torch.zeros(1).expand(10**7, 10**7), torch.zeros(LAYERS, HIDDEN, device="meta")])
def test_a_tensor_without_its_numbers_in_the_file_is_refused_wherever_it_stands(tmp_path, name, content):
    torch.save({"vector": content}, publish(tmp_path / "f") / f"{name}.pt")
    with pytest.raises(SpaceError, match=rf"{name}.pt: refused, it holds a (meta )?tensor"):
        import_space(tmp_path / "f")


def test_axis_and_default_follow_from_each_other_where_one_is_missing(tmp_path):
    mean = import_space(publish(tmp_path / "a")).tensors["role_vectors"].mean(0)
    for k, missing in enumerate(("assistant_axis", "default_vector")):
        folder = publish(tmp_path / str(k))
        (folder / f"{missing}.pt").unlink()
        tensors = import_space(folder).tensors
        assert torch.allclose(tensors["axis"], tensors["default_vector"] - mean, atol=1e-6)


def test_what_is_missing_from_a_folder_is_named(tmp_path):
    folder = publish(tmp_path / "f")
    (folder / "assistant_axis.pt").unlink()
    (folder / "default_vector.pt").unlink()
    with pytest.raises(SpaceError, match=r"no assistant_axis.pt or default_vector.pt; expected"):
        import_space(folder)
    with pytest.raises(SpaceError, match=r"no role_vectors/\*.pt and no assistant_axis.pt"):
        import_space(tmp_path / "nowhere")


def test_a_published_ceiling_away_from_the_assistant_is_a_floor_on_the_axis(space, tmp_path):
    published = read_capping(tmp_path / "published" / "capping_config.pt")
    assert {name: len(caps) for name, caps in published.items()} == {"layers_2:4-p0.25": 2, "other": 1}
    assert list(space.caps) == ["capped", "layers_2:4-p0.25"]
    ours = space.cap("layers_2:4-p0.25")
    assert (ours.layers, ours.floor) == ((2, 3), (-3.5, -4.5))
    hidden = 9 * torch.randn(100, HIDDEN)
    for theirs in published["layers_2:4-p0.25"]:
        (layer,) = theirs.layers
        capped = theirs.apply(hidden, layer)
        assert torch.allclose(capped, ours.apply(hidden, layer), atol=1e-4)
        assert 0 < (capped != hidden).any(-1).sum() < 100


def test_caps_are_written_as_published_and_read_back_equal(space, tmp_path):
    caps = {
        "a": (Cap(torch.randn(HIDDEN), (1, 2), ceiling=(0.5, 3.0)),),
        "b": (Cap(torch.randn(HIDDEN), (0,), floor=2),),
    }
    write_capping(tmp_path / "config.pt", caps)
    once = read_capping(tmp_path / "config.pt")
    write_capping(tmp_path / "again.pt", once)
    assert read_capping(tmp_path / "again.pt") == once
    hidden = torch.randn(50, HIDDEN)
    for name, layer in (("a", 1), ("a", 2), ("b", 0)):
        back = next(c for c in once[name] if c.layers == (layer,))
        assert torch.allclose(back.apply(hidden, layer), caps[name][0].apply(hidden, layer), atol=1e-6)
    with pytest.raises(SpaceError, match=r"x.pt: cannot be read: No such file"):
        read_capping(tmp_path / "x.pt")
    with pytest.raises(SpaceError, match="generated tokens only"):
        write_capping(tmp_path / "x.pt", {"c": (Cap(torch.ones(HIDDEN), (0,), floor=0, where="generated"),)})


def test_caps_of_a_space_of_our_own_come_back_from_the_published_form(space, tmp_path):
    ours = {name: space.tensors[name] for name in ("axis", "default_vector", "role_vectors")}
    space = PersonaSpace({name: space.meta[name] for name in ("model", "layer", "roles")}, ours)
    space.meta["caps"] = {"mild": {"layers": [1, 2], "floors": [0.25, -1.0], "of": "default", "percentile": 25}}
    export_space(space, "reference", tmp_path / "out")
    assert isinstance(files(tmp_path / "out")["role_vectors/ghost.pt"], torch.Tensor)
    back = import_space(tmp_path / "out").cap("mild")
    assert (back.layers, back.floor) == ((1, 2), (0.25, -1.0))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["assistant_axis", "role_vectors/ghost", "capping_config"])
@pytest.mark.parametrize(
    ("written", "told"),
    [
        (torch.save, r"asks to run \w+\.system"),
        (partial(torch.save, _use_new_zipfile_serialization=False), r"asks to run \w+\.system"),
        (pickle.dump, "is broken, or asks for something else"),
    ],
)
def test_a_pickle_that_asks_to_be_run_is_refused_in_one_line_and_has_no_effect(
    tmp_path, monkeypatch, name, written, told
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder, mark = publish(tmp_path / "f"), tmp_path / "it-ran"
    evil = {"vector": torch.zeros(LAYERS, HIDDEN), "role": Evil(mark)} if written is not pickle.dump else Evil(mark)
    with open(folder / f"{name}.pt", "wb") as f:
        written(evil, f)
    with pytest.raises(SpaceError, match=rf"{name}.pt: refused, its pickle {told}") as error:
        import_space(folder)
    assert "\n" not in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0, 1, 300, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = publish(tmp_path / "f") / "role_vectors" / "ghost.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SpaceError, match=r"ghost.pt: (not a whole .pt file|refused, its pickle is broken)") as told:
        import_space(tmp_path / "f")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (torch.zeros(LAYERS, HIDDEN - 1), r"found shape \[4, 7\], expected \[4, 8\] as in assistant_axis.pt"),
        (torch.zeros(HIDDEN), r"found a float32 tensor of shape \[8\]; expected a tensor \[layers, hidden\]"),
        (torch.zeros(LAYERS, HIDDEN, dtype=torch.int64), "found a int64 tensor"),
        (torch.full((LAYERS, HIDDEN), torch.nan), "found NaN or Inf"),
        ({"axis": torch.zeros(LAYERS, HIDDEN)}, r"found a dict with \['axis'\]"),
        ({"vector": torch.zeros(LAYERS, HIDDEN), "n": torch.tensor(3)}, "holds more than vectors"),
        ("text", "found str"),
    ],
)
def test_a_vector_of_another_shape_or_kind_is_named(tmp_path, content, told):
    torch.save(content, publish(tmp_path / "f") / "role_vectors" / "ghost.pt")
    with pytest.raises(SpaceError, match=rf"ghost.pt: {told}"):
        import_space(tmp_path / "f")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.pop("vectors"), "'vectors': field required"),
        (lambda c: c["vectors"]["layer_1/other"].update(layer=9), "at layer 9; expected 8 at a layer from 0 to 3"),
        (
            lambda c: c["vectors"]["layer_1/other"].update(vector=torch.ones(2, 4)),
            r"shape \[2, 4\]; expected vectors \[hidden\]",
        ),
        (lambda c: c["vectors"]["layer_1/other"].update(vector=torch.ones(7)), "is 7 numbers at layer 1"),
        (lambda c: c["vectors"]["layer_1/other"].update(vector=torch.zeros(8)), "not zero"),
        (lambda c: c["experiments"][0]["interventions"][0].update(vector="gone"), "names the vector 'gone'"),
    ],
)
def test_a_capping_configuration_that_cannot_be_meant_is_named(tmp_path, change, told):
    path = publish(tmp_path / "f") / "capping_config.pt"
    config = torch.load(path, weights_only=True)
    change(config)
    torch.save(config, path)
    with pytest.raises(SpaceError, match=rf"capping_config.pt: .*{told}"):
        import_space(tmp_path / "f")


def test_a_folder_is_written_whole_and_only_where_there_is_none(space, tmp_path):
    with pytest.raises(SpaceError, match="published: is there already"):
        export_space(space, "reference", tmp_path / "published")
    with pytest.raises(SpaceError, match="compact"):
        export_space(space.compact(), "reference", tmp_path / "compact")
    space.meta["roles"][2] = "../ghost"
    with pytest.raises(SpaceError, match="cannot be a file's name"):
        export_space(space, "reference", tmp_path / "up" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(SpaceError, match="cannot be written"):
        export_space(space, "reference", tmp_path / "file" / "out")
    assert not list(tmp_path.rglob("*ompact*"))
    assert not list((tmp_path / "up").iterdir())


@pytest.mark.parametrize("direction", ["axis", "ghost"])
def test_gguf_reads_a_control_vector_back_equal_each_layer_under_its_own_number(space, tmp_path, direction):
    export_space(space, "gguf", tmp_path / "v.gguf", direction, scale=2.0)
    roles = space.tensors["role_vectors"]
    expected = 2 * (space.tensors["axis"] if direction == "axis" else roles[ROLES.index("ghost")] - roles.mean(0))
    reader = GGUFReader(tmp_path / "v.gguf")
    fields = {name: reader.get_field(name).contents() for name in reader.fields if not name.startswith("GGUF")}
    assert fields["general.architecture"] == "controlvector"
    assert (fields["controlvector.model_hint"], fields["controlvector.layer_count"]) == ("owner/tiny", LAYERS - 1)
    assert [t.name for t in reader.tensors] == ["direction.1", "direction.2", "direction.3"]
    for layer, tensor in enumerate(reader.tensors, 1):
        assert (tensor.tensor_type.name, list(tensor.shape)) == ("F32", [HIDDEN])
        assert torch.allclose(torch.from_numpy(tensor.data.copy()), expected[layer])
    back = read_control_vector(tmp_path / "v.gguf")
    assert all(torch.allclose(back[layer], expected[layer]) for layer in (1, 2, 3))


def test_a_compact_space_gives_a_role_at_the_layer_that_it_holds(space, tmp_path):
    export_space(space.compact(), "gguf", tmp_path / "v.gguf", "ghost")
    assert list(read_control_vector(tmp_path / "v.gguf")) == [2]
    space.meta["layer"] = 0
    with pytest.raises(SpaceError, match="no place for layer 0"):
        export_space(space.compact(), "gguf", tmp_path / "v.gguf", "ghost")


def test_what_llama_cpp_would_refuse_is_refused_by_name(space, tmp_path):
    for arch, name, data, told in (
        ("llama", "direction.1", torch.ones(8), "found a GGUF file of 'llama'"),
        ("controlvector", "direction.0", torch.ones(8), "found 'direction.0'"),
        ("controlvector", "direction.1", torch.ones(8).half(), "F16"),
        ("controlvector", "direction.1", torch.ones(2, 4), r"\[2, 4\]"),
    ):
        writer = GGUFWriter(tmp_path / "x.gguf", arch)
        writer.add_tensor(name, data.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(SpaceError, match=f"x.gguf: .*{told}"):
            read_control_vector(tmp_path / "x.gguf")
    export_space(space, "gguf", tmp_path / "v.gguf")
    whole = (tmp_path / "v.gguf").read_bytes()
    for keep in range(0, len(whole) - 1, 7):
        (tmp_path / "v.gguf").write_bytes(whole[:keep])
        with pytest.raises(SpaceError, match=r"v.gguf: not a whole GGUF file"):
            read_control_vector(tmp_path / "v.gguf")
    with pytest.raises(SpaceError, match="no such file"):
        read_control_vector(tmp_path / "nowhere.gguf")


def test_wrong_use_is_told_what_there_is(space, tmp_path):
    with pytest.raises(UsageError, match="'pickle': expected one of gguf, reference"):
        export_space(space, "pickle", tmp_path / "x")
    with pytest.raises(SpaceError, match=r"no role 'gost' .*nearest: ghost"):
        export_space(space, "gguf", tmp_path / "x", "gost")
    with pytest.raises(UsageError, match="scale nan"):
        export_space(space, "gguf", tmp_path / "x", scale=float("nan"))
    with pytest.raises(UsageError, match="expected owner/name"):
        push(space, "hf://name")
    assert not (tmp_path / "x").exists()


class Hub(BaseHTTPRequestHandler):
    """The Hub's endpoints that a push and a load use; holds what is uploaded, and wants the token `hf_right`."""

    repos: dict[str, bool]
    files: dict[str, bytes]
    objects: dict[str, bytes]

    def log_message(self, *_: object) -> None: ...

    def answer(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        given, base = lines[0], f"http://{self.headers['Host']}"
        path = self.path.partition("?")[0]
        token = self.headers.get("Authorization", "")
        if token != "Bearer hf_right":
            self.answer({"error": "no"}, 403 if token == "Bearer hf_reader" else 401)
        elif path == "/api/repos/create":
            repo = f"{given['organization']}/{given['name']}"
            known = repo in self.repos
            self.repos.setdefault(repo, given.get("visibility") == "private" or given.get("private") is True)
            self.answer({"url": f"{base}/{repo}", "error": "exists"}, 409 if known else 200)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            modes = {True: "lfs", False: "regular"}
            told = [
                {"path": f["path"], "uploadMode": modes[f["path"].endswith(".safetensors")]} for f in given["files"]
            ]
            self.answer({"files": [{**t, "shouldIgnore": False} for t in told]})
        elif path.endswith("/info/lfs/objects/batch"):
            places = [{**o, "actions": {"upload": {"href": f"{base}/upload/{o['oid']}"}}} for o in given["objects"]]
            self.answer({"transfer": "basic", "objects": places})
        elif path.endswith("/commit/main"):
            repo = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in lines[1:]:
                value, name = line["value"], f"{repo}/{line['value']['path']}"
                lfs = line["key"] == "lfsFile"
                self.files[name] = self.objects[value["oid"]] if lfs else base64.b64decode(value["content"])
            self.answer({"commitUrl": f"{base}/{repo}/commit/1", "commitOid": "1" * 40})
        else:
            self.answer({"error": path}, 404)

    def do_PUT(self) -> None:
        self.objects[self.path.rsplit("/", 1)[1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = re.sub(r"/resolve/[^/]+/", "/", path).lstrip("/")
        repo = path.removeprefix("/api/models/")
        if name in self.files:
            headers = {"ETag": f'"{len(self.files[name])}"', "X-Repo-Commit": "1" * 40}
            self.answer(self.files[name], headers=headers)
        elif repo in self.repos:
            self.answer(
                {"id": repo, "private": self.repos[repo], "siblings": [], "tags": [], "downloads": 0, "likes": 0}
            )
        else:
            self.answer({"error": path}, 404)

    do_HEAD = do_GET


@pytest.fixture
def hub():
    handler = type("Server", (Hub,), {"repos": {}, "files": {}, "objects": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def local(monkeypatch, tmp_path):
    """No proxy, no token of the user's, no Xet (the stand-in speaks plain LFS)."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


ROUND_TRIP = """
import sys
from personaspace.formats import push
from personaspace.space import PersonaSpace
print(push(PersonaSpace.load(sys.argv[1]), "hf://owner/tiny-space", private=True))
PersonaSpace.load("hf://owner/tiny-space").save(sys.argv[2])
"""


@pytest.mark.long
def test_a_space_pushed_to_the_hub_is_pulled_back_byte_for_byte_with_a_card(space, tmp_path, hub, local, monkeypatch):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)  # read when the client is imported: so in a process of its own
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    space.save(tmp_path / "a.safetensors")
    command = [sys.executable, "-c", ROUND_TRIP, str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{endpoint}/owner/tiny-space"]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    served = hub.RequestHandlerClass
    assert served.repos == {"owner/tiny-space": True}
    assert served.files["owner/tiny-space/README.md"].decode() == model_card(space, "owner/tiny-space")


def test_the_card_says_what_the_space_is_and_how_to_load_it(space):
    card = model_card(space, "owner/tiny-space")
    front = card.split("---\n")[1]
    assert front.startswith("library_name: personaspace\nbase_model: owner/tiny\ntags:\n- personaspace\n")
    assert 'PersonaSpace.load("hf://owner/tiny-space")' in card
    ranked = [role["name"] for role in space.summary()["roles"]]
    assert f"Most Assistant-like: {', '.join(ranked[:2])}." in card
    assert f"Least Assistant-like: {', '.join(ranked[:-3:-1])}." in card
    assert f"| cosine of axis and PC1 | {space.summary()['axis_pc1_cosine']:.3f} |" in card
    assert "| reliability of the axis | not known |" in card
    space.meta["model"]["id"] = "/somewhere/of/mine/tiny"
    assert "somewhere" not in model_card(space, "owner/tiny-space")


def test_the_card_tells_how_sure_the_space_is_in_words_and_ranks_no_role_where_the_order_is_not_known(space):
    for name, value in (("axis", 0.9), ("order", 0.31), ("map", 0.85)):
        space.tensors[f"{name}_split_half"] = torch.full((len(space.tensors["axis"]),), value / (2 - value))
    card = model_card(space, "owner/tiny-space")
    assert "| reply | order | 0.31 | Not known: mapped again, the roles would stand in another order" in card
    assert "| reply | map | 0.85 | Of the roles' squared distances, 15% is noise." in card
    assert card.index("How sure it is") < card.index("## Figures")
    assert "The order is not known (reliability 0.31)" in card
    assert "Assistant-like:" not in card


def test_what_the_hub_refuses_is_told_in_one_line(space, hub, local):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    hub.RequestHandlerClass.repos["owner/open"] = False
    for target, token, where, told in (
        ("owner/x", None, endpoint, "no valid token; run `hf auth login`"),
        ("owner/x", "hf_reader", endpoint, "may not write there"),
        ("owner/open", "hf_right", endpoint, "and public; nothing was uploaded"),
        ("owner/x", "hf_right", "http://127.0.0.1:9", "is the network there"),
    ):
        with pytest.raises(SpaceError, match=f"{target}: .*{told}") as error:
            push(space, target, private=True, token=token, endpoint=where)
        assert "\n" not in str(error.value)
    assert not hub.RequestHandlerClass.files
