"""What loading a model does, and never does: no code of a model's own folder is run."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from personaspace import PersonaSpace
from personaspace.engines import load_engine
from personaspace.errors import ModelError
from personaspace.mapping.plan import model_of

SOURCE = Path(__file__).parent.parent / "src" / "personaspace"
CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokenizer
"""


def strangers_folder(folder: Path, tiny_folder: Path, model_type: str) -> Path:
    """A model whose configuration, network and tokenizer name code of the folder's own; returns the mark it would leave."""
    shutil.copytree(tiny_folder, folder)
    mark = folder.parent / f"{folder.name}-ran"
    (folder / "code_of_mine.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "Config", "AutoModelForCausalLM": "Model"}
    config |= {"model_type": model_type, "auto_map": {k: f"code_of_mine.{v}" for k, v in names.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about |= {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "code_of_mine.Tokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return mark


@pytest.mark.parametrize("load", [lambda name: load_engine("transformers", name), model_of])
def test_a_folder_with_code_of_its_own_is_refused_and_its_code_is_not_run(tmp_path, tiny_folder, load):
    mark = strangers_folder(tmp_path / "model", tiny_folder, "strange")
    with pytest.raises(ModelError):
        load(str(tmp_path / "model"))
    assert not mark.exists()


def test_a_family_that_is_known_loads_without_the_code_that_its_folder_names(tmp_path, tiny_folder):
    mark = strangers_folder(tmp_path / "model", tiny_folder, "llama")
    about = json.loads((tiny_folder / "tokenizer_config.json").read_text())
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(about))
    assert load_engine("transformers", str(tmp_path / "model")).info.layers == 3
    assert not mark.exists()


@pytest.mark.long
@pytest.mark.parametrize("answers", ["1\n1\n1\n", "y\ny\ny\n", "yes\n"])
def test_nothing_piped_into_chat_is_taken_for_leave_to_run_it(tmp_path, tiny_folder, answers):
    mark = strangers_folder(tmp_path / "model", tiny_folder, "strange")
    space = PersonaSpace.load("smollm2")
    meta = {**space.meta, "model": {**space.meta["model"], "id": str(tmp_path / "model")}}
    PersonaSpace(meta, space.tensors).save(tmp_path / "space.safetensors")
    command = [
        sys.executable,
        "-c",
        "from personaspace.cli import main; main()",
        "chat",
        str(tmp_path / "space.safetensors"),
    ]
    ended = subprocess.run(command, input=answers, capture_output=True, text=True, timeout=120, check=False)
    assert not mark.exists()
    assert ended.returncode == 1
    assert "Python code of their own" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_every_loader_is_told_to_run_no_code():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("from_pretrained", "SentenceTransformer"):
                told = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert told.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
