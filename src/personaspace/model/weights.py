"""Loads weights and tokenizers by `transformers`: whole or not at all, without running a folder's own code, and with one line
for what went wrong. It knows nothing of names; reads the disk, and the Hub where it must."""

from __future__ import annotations

import contextlib
import difflib
import struct
from collections.abc import Collection, Iterator
from logging import ERROR, getLogger
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from personaspace.errors import ModelError

log = getLogger("personaspace")

BROKEN = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError),
    *(ImportError, MemoryError, SafetensorError, UnpicklingError, struct.error),
)
"""What readers of other people's files have been seen to raise on files that are cut, changed or of another kind."""

PACKAGES = {
    "auto-round": "auto-round",
    "aqlm": "'aqlm[gpu,cpu]'",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "kernels",
    "gptq": "optimum gptqmodel",
    "hqq": "hqq",
    "mxfp4": "kernels",
    "quanto": "optimum-quanto",
    "quark": "amd-quark",
    "sinq": "sinq",
    "torchao": "torchao",
    "vptq": "vptq",
}
"""What `transformers` needs for a way of quantising weights, as pip takes it; the others need nothing, or a device."""


def quantization_of(where: str | Path) -> str | None:
    """How a model's weights are quantised, as its config.json says (`fp8`, `gptq`, …); None where they are not."""
    from transformers import PreTrainedConfig

    config, _ = PreTrainedConfig.get_config_dict(where)
    settings = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
    if not settings:
        return None
    # Early files of bitsandbytes' have no name for it.
    method = settings.get("quant_method") or ("bitsandbytes" if "load_in_8bit" in settings else "of no name")
    return str(method)


def read_weights(where: str | Path, name: str, **options: Any) -> Any:
    """The model in a folder or of a Hub id, every weight of it from its files; name: what the user calls it; options:
    `from_pretrained`'s. Raises `ModelError` where a weight is missing or of another shape, or where it cannot be loaded."""
    from transformers import AutoModelForCausalLM
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    with in_one_line(name):
        method = None if "gguf_file" in options else quantization_of(where)
        if method and not {method, f"{method}_4bit"} & set(AUTO_QUANTIZATION_CONFIG_MAPPING):
            # transformers would take the packed numbers for weights.
            raise ModelError(
                f"{name}: its weights are quantised by {method}, which transformers does not know; expected one of "
                f"{', '.join(AUTO_QUANTIZATION_CONFIG_MAPPING)}, or weights that are not quantised"
            )
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                where, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except ImportError as e:
            if method not in PACKAGES:
                raise
            raise ModelError(
                f"{name}: its weights are quantised by {method}, which needs a package that is not here "
                f"({_first_line(e)}): pip install {PACKAGES[method]}"
            ) from None
    # transformers would go on with random numbers in their place.
    if missing := report["missing_keys"]:
        raise ModelError(
            f"{name}: {_listed(missing)} missing from its files, which are not whole; expected each of the model's "
            f"{len(model.state_dict())} tensors: get the files anew"
        )
    if mismatched := sorted(report["mismatched_keys"]):
        tensor, in_file, in_model = mismatched[0]
        raise ModelError(
            f"{name}: {_listed([m[0] for m in mismatched])} of another shape than its configuration says: {tensor} is "
            f"{list(in_file)}, expected {list(in_model)}"
        )
    if unexpected := report["unexpected_keys"]:
        log.warning("warning: %s: %s left out: the model has no place for that", name, _listed(unexpected))
    return model


def load_tokenizer(where: str | Path, name: str, **options: Any) -> Any:
    """The tokenizer in a folder or of a Hub id; name: what the user calls the model. Raises `ModelError`."""
    from transformers import AutoTokenizer

    with in_one_line(name):
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)


@contextlib.contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """Around every load by `transformers`, each of which says `trust_remote_code=False`: where that is left open, it asks on
    standard input whether to run a folder's own code, and takes the first "1" or "y" that is piped in for a yes."""
    from huggingface_hub.errors import HTTPError
    from transformers.utils import logging

    logging.disable_progress_bar()
    # What the Hub's client and transformers say on the way: what comes of it is said below.
    getLogger("huggingface_hub").setLevel(ERROR)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except Exception as e:
        # The tokenizers' library raises nothing more special than this, of its own errors alone.
        if type(e) is not Exception and not isinstance(e, (HTTPError, *BROKEN)):
            raise
        if "trust_remote_code" in str(e):
            raise ModelError(
                f"{name}: its files ask for Python code of their own to be run (auto_map), which is never done; "
                "expected a model of a family that transformers has itself"
            ) from None
        raise ModelError(f"cannot load the model {name!r}{near_names(name)} ({_first_line(e)[:200]})") from None
    finally:
        logging.set_verbosity(verbosity)


def near_names(name: str) -> str:
    """A hint with the names nearest to one, of models that are known on this machine."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = [repo.repo_id for repo in scan_cache_dir().repos]
    except CacheNotFound:
        cached = []
    near = difflib.get_close_matches(name.lower(), ["smollm2", *cached], n=3, cutoff=0.7)
    return f"; did you mean {', '.join(near)}?" if near and name not in near else ""


def _first_line(error: Exception) -> str:
    """What an error says first; with what it announces, where that is on the next line."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def _listed(tensors: Collection[str]) -> str:
    """How many, and which the first ones are, with a verb to go on from."""
    names = sorted(tensors)
    shown = ", ".join(names[:2]) + (", …" if len(names) > 2 else "")
    return f"{len(names)} tensors ({shown}) are" if len(names) > 1 else f"the tensor {shown} is"
