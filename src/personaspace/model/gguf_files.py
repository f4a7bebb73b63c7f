"""GGUF files of models, split ones too, as folders that `transformers` loads fast. Reads the disk and writes into the cache."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from personaspace.errors import ModelError, RunError
from personaspace.files import first_line, new_folder
from personaspace.model.gguf_header import check_header
from personaspace.model.weights import BROKEN, load_tokenizer, read_weights

PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
"""The name of a part of a split file, as llama.cpp writes and expects it."""

FORMAT = "2"
"""Of what is kept in the cache: what another version converted is converted anew."""


def cache_folder() -> Path:
    """Where converted models are kept: PERSONASPACE_CACHE, or the user's cache folder."""
    configured = os.environ.get("PERSONASPACE_CACHE")
    return (
        Path(configured)
        if configured
        else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "personaspace"
    )


def models_among(names: Iterable[str]) -> list[str]:
    """The GGUF models among files' names, a split one by its first part; projectors of images and matrices of importances are
    left out."""
    first_parts: dict[str, str] = {}
    for name in sorted(names):
        file = name.rsplit("/", 1)[-1].lower()
        if file.endswith(".gguf") and not file.startswith("mmproj") and "imatrix" not in file:
            part = PART.fullmatch(name)
            first_parts.setdefault(f"{part['stem']}-of-{part['count']}" if part else name, name)
    return list(first_parts.values())


def part_names(name: str) -> list[str]:
    """The names of all parts of a split file, in order, from that of any one; the name alone where it is no part's."""
    if not (part := PART.fullmatch(name)):
        return [name]
    return [f"{part['stem']}-{k:05d}-of-{part['count']}.gguf" for k in range(1, int(part["count"]) + 1)]


def converted(gguf: Path, name: str) -> Path:
    """The weights of a GGUF file, or of all parts of a split one, dequantised to fp32 in the format that loads fastest, in a
    folder that is kept. name: what the user calls it. Raises `ModelError`, and keeps nothing, where a part or a tensor is
    missing."""
    parts = [gguf.parent / part for part in part_names(gguf.name)]
    for k, part in enumerate(parts, 1):
        if not part.is_file():
            raise ModelError(f"{name}: part {k} of {len(parts)} is missing: expected {part.name} in {part.parent}")
    stats = [(str(part.resolve()), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]

    def write(folder: Path) -> None:
        whole = parts[0]
        with _naming(name):
            for part in parts:  # before a reader believes what it says of its own length
                check_header(part)
            count, number = _split_of(parts[0])
        if count != len(parts):
            # Only the names say where the others are.
            stem = PART.sub(r"\g<stem>", gguf.name).removesuffix(".gguf")
            other = f"{stem}-{2 if number == 0 else 1:05d}-of-{count:05d}.gguf"
            raise ModelError(
                f"{name}: it is part {number + 1} of {count} of a split GGUF, and the rest is missing: expected {other} "
                f"beside it, and it under the name {stem}-{number + 1:05d}-of-{count:05d}.gguf"
            )
        if count > 1:
            whole = folder / "whole.gguf"
            with _naming(name):
                _join(parts, whole)
        _convert(whole, folder, name)
        if count > 1:
            whole.unlink()

    return kept_folder(gguf.stem, stats, write)


def kept_folder(stem: str, key: object, write: Callable[[Path], None]) -> Path:
    """A model's folder in the cache, under a name that a key makes its own: written where it is not there, whole or not at
    all. Raises `ModelError`."""
    digest = hashlib.sha256(f"{FORMAT} {key}".encode()).hexdigest()[:12]
    target = cache_folder() / "models" / f"{stem}-{digest}"
    if (target / "config.json").is_file():
        return target
    try:
        with new_folder(target) as new:
            write(new)
    except RunError as e:
        if not (target / "config.json").is_file():  # else another process was faster
            raise ModelError(str(e)) from None
    return target


def _convert(gguf: Path, folder: Path, name: str) -> None:
    from transformers import GgufConfig

    with _naming(name), contextlib.redirect_stderr(io.StringIO()):  # the reader draws bars of its own
        model = read_weights(
            gguf.parent,
            name,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        if quantizer := getattr(model, "hf_quantizer", None):
            quantizer.remove_quantization_config(model)
        model.save_pretrained(folder)
        load_tokenizer(gguf.parent, name, gguf_file=gguf.name).save_pretrained(folder)


def _split_of(gguf: Path) -> tuple[int, int]:
    """Of how many parts a file is one, and which, counted from 0."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    count, number = (int(fields[key].contents()) if key in fields else 0 for key in ("split.count", "split.no"))
    return max(1, count), number


def _join(parts: Sequence[Path], target: Path) -> None:
    """Writes a split file's parts as one file: the first part's settings, and all parts' tensors as they stand."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    readers = [GGUFReader(part) for part in parts]
    fields = readers[0].fields
    writer = GGUFWriter(target, fields["general.architecture"].contents())
    if "general.alignment" in fields:
        writer.data_alignment = fields["general.alignment"].contents()
    for field in fields.values():
        if field.name != "general.architecture" and not field.name.startswith(("GGUF.", "split.")):
            kind = field.types[0]
            item_kind = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=item_kind)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    total = int(fields["split.tensors.count"].contents()) if "split.tensors.count" in fields else len(tensors)
    if len(tensors) != total:
        raise ValueError(f"its parts hold {len(tensors)} tensors together, expected {total}")
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Around what reads a GGUF file."""
    try:
        yield
    except BROKEN as e:
        raise ModelError(f"{name}: cannot read the GGUF file: {first_line(e)}") from None
