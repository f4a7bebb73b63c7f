"""A `.pt` file from a stranger: a few bytes may claim anything, and nothing is allocated for it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from personaspace.errors import SpaceError
from personaspace.formats.tensor_files import load_tensor_file

SMALL = torch.arange(32.0).reshape(4, 8)


def nested(levels: int, kind: type = dict) -> object:
    """A dict in a dict in a dict …"""
    value: object = 1
    for _ in range(levels):
        value = {"vector": value} if kind is dict else kind([value])
    return value


def doubled(levels: int) -> object:
    """A list whose copies double at every level: a few hundred bytes in the file."""
    value: object = [SMALL]
    for _ in range(levels):
        value = [value, value]
    return value


def save(path: Path, content: object, **options: object) -> Path:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        torch.save(content, path, **options)
    finally:
        sys.setrecursionlimit(limit)
    return path


def plain(value: object) -> object:
    """The same with lists in tensors' places."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        SMALL,
        {"vector": SMALL, "role": "ghost", "type": "pos_3"},
        OrderedDict(vector=SMALL.bfloat16(), n=3),
        {
            "vectors": {"a": {"vector": SMALL[1], "layer": 3}},
            "experiments": [{"id": "x", "interventions": [1.5, None]}],
        },
        [SMALL[:, 2], SMALL.T, (SMALL,)],
        nested(15),
    ],
)
def test_what_torch_save_writes_of_vectors_comes_back_equal(tmp_path, content, zipped):
    loaded = load_tensor_file(save(tmp_path / "a.pt", content, _use_new_zipfile_serialization=zipped))
    assert type(loaded) is type(content)
    assert plain(loaded) == plain(content)


HUGE = {
    "expanded": torch.zeros(1).expand(10**7, 10**7),
    "expanded one way": torch.zeros(8).expand(10**13, 8),
    "in a dict": {"vector": torch.zeros(1, 1).expand(10**7, 10**7), "role": "ghost"},
    "in an experiment": {"vectors": {"a": {"vector": torch.zeros(1).expand(10**14), "layer": 0}}, "experiments": []},
    "strided over itself": torch.zeros(16).as_strided((10**6, 10**6, 4), (0, 0, 1)),
    "huge and without numbers": torch.zeros(10**7, 10**7, device="meta"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", HUGE.values(), ids=HUGE)
def test_a_tensor_larger_than_its_file_is_refused(tmp_path, content, zipped):
    path = save(tmp_path / "a.pt", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SpaceError, match=r"a\.pt: refused, it holds a tensor of shape \[.*\], [\d,]+ bytes") as problem:
        load_tensor_file(path)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (torch.zeros(0, 8, device="meta"), "refused, it holds a meta tensor"),
        (torch.zeros(1, 8, device="meta"), "refused, it holds a meta tensor"),
        ({"vector": SMALL, "more": torch.zeros(1, device="meta")}, "refused, it holds a meta tensor"),
        (SMALL.to_sparse(), ".*(sparse, nested or quantised|not a whole)"),
        (nested(1_000), "refused, it nests deeper than 20 levels"),
        (nested(1_000, list), "refused, it nests deeper than 20 levels"),
        (nested(900, tuple), "refused, it nests deeper than 20 levels"),
        ({"vector": SMALL, "form": nested(25)}, "refused, it nests deeper than 20 levels"),
        (doubled(60), "refused, it (nests deeper|holds more than 1,000,000 values)"),
        ([[[SMALL] * 2_000] * 2_000], "refused, it holds more than 1,000,000 values"),
        (["x" * 640_000] * 1_000, "refused, it holds more than 1,000,000 values"),
        ({(1, 2): SMALL}, "refused, a dict in it has keys that are neither"),
    ],
)
def test_what_no_file_of_vectors_is_like_is_refused_in_one_line(tmp_path, content, told):
    with pytest.raises(SpaceError, match=rf"a\.pt: {told}") as problem:
        load_tensor_file(save(tmp_path / "a.pt", content))
    assert "\n" not in str(problem.value)


def test_a_file_whose_parts_unpack_to_more_than_it_is_is_refused(tmp_path):
    save(tmp_path / "a.pt", torch.zeros(1_000_000))
    packed = zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "a.pt") as stored, packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    with pytest.raises(SpaceError, match=r"b\.pt: refused, it unpacks to 4,\d+,\d+ bytes"):
        load_tensor_file(tmp_path / "b.pt")


def test_numbers_that_are_claimed_and_not_in_the_file_are_refused(tmp_path):
    save(tmp_path / "a.pt", SMALL)
    with zipfile.ZipFile(tmp_path / "a.pt") as stored, zipfile.ZipFile(tmp_path / "b.pt", "w") as cut:
        for entry in stored.infolist():
            cut.writestr(entry.filename, stored.read(entry)[: 64 if entry.filename.endswith("data/0") else None])
    with pytest.raises(SpaceError, match=r"b\.pt: (not a whole|refused)"):
        load_tensor_file(tmp_path / "b.pt")


LIMITED = """
import resource, sys
from pathlib import Path
from personaspace.errors import SpaceError
from personaspace.formats.tensor_files import load_tensor_file
used = int(next(x for x in open("/proc/self/status") if x.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2)
for path in sys.argv[1:]:
    try:
        load_tensor_file(Path(path))
    except SpaceError as e:
        print(e)
"""


@pytest.mark.long
def test_they_are_refused_by_a_process_that_may_take_no_more_memory(tmp_path):
    paths = [str(save(tmp_path / f"{k}.pt", content)) for k, content in enumerate(HUGE.values())]
    paths.append(str(save(tmp_path / "doubled.pt", doubled(60))))
    done = subprocess.run([sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == paths
    assert all("refused" in line for line in lines)
