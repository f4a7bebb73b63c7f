"""Where files lie, and how they are written: whole or not at all, on this disk or at an address; it knows nothing of runs."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from personaspace import json_text
from personaspace.errors import PersonaSpaceError, RunError, SpaceError, UsageError, invalid_reason

# What looks at a space needs no Arrow: it is imported where a table or an address is used.
if TYPE_CHECKING:
    import pyarrow as pa


T = TypeVar("T")

log = logging.getLogger("personaspace")

_NOT_FLUSHED = (
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EBADF,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
)
"""What file systems answer that do not flush folders: the file is written all the same."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there whole or not at all, also after a power cut; its folder is made where there is none. Raises
    `RunError` on a full disk.

    >>> write_whole(Path("run.json"), b"{}")
    """
    temporary = path.with_name(f".{path.name}.{_mine()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(
                f.fileno()
            )  # the content first: a rename may reach the disk before it, and a power cut come between
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        then = "make room and run the same command" if e.errno in _FULL else "give a place that can be written"
        raise RunError(f"cannot write {path}: {reason_of(e)}; what was finished is whole, {then}") from None


def _flush_folder(path: Path) -> None:
    """The rename is the folder's content, and is not on the disk before the folder is."""
    try:
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as e:
        if e.errno not in _NOT_FLUSHED:
            raise
        _warn_unflushed(reason_of(e))


@cache  # once
def _warn_unflushed(reason: str) -> None:
    log.warning(
        "files are written, but their file system flushes no folders (%s): a power cut may undo the last ones", reason
    )


def reason_of(error: OSError) -> str:
    """What the system says of a failure, in a few words."""
    if error.errno in _FULL:
        return "the disk is full"
    return error.strerror or str(error) or type(error).__name__


LEFT_OVER = re.compile(r"\..+\.[^/]+-\d+\.tmp")
"""The name of a file that `write_whole` was killed in."""


def _mine() -> str:
    """This process among all that may write to a place."""
    return f"{os.uname().nodename}-{os.getpid()}"


def write_table(path: Path, table: pa.Table) -> None:
    """A parquet file, whole or not at all."""
    write_whole(path, table_bytes(table))


def table_bytes(table: pa.Table) -> bytes:
    """A parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    parquet: bytes = sink.getvalue().to_pybytes()
    return parquet


def read_rows(path: Path, schema: pa.Schema | None = None, then: str = "run the same command") -> list[dict[str, Any]]:
    """A parquet file's rows, which have the schema's columns; others are left as they are. Raises `RunError` for a file that is
    not one, or has others; then: what follows once it is deleted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        check_columns(table, schema or ())
        rows: list[dict[str, Any]] = table.to_pylist()
    except (OSError, pa.ArrowException, ValueError) as e:
        raise RunError(f"{path}: cannot be read ({first_line(e)}); delete it, and {then}") from None
    return rows


def check_columns(table: pa.Table, schema: Iterable[pa.Field]) -> None:
    """Raises `ValueError` where a table holds what is no text, lacks a column of a schema, has it of another type, or without a
    value where the schema has one in every row."""
    table.validate(full=True)
    for column in schema:
        if column.name not in table.column_names:
            raise ValueError(f"it lacks the column {column.name}")
        values = table[column.name]
        if values.type != column.type:
            raise ValueError(f"its column {column.name} holds {values.type}, expected {column.type}")
        if values.null_count and not column.nullable:
            raise ValueError(f"its column {column.name} has no value in {values.null_count} rows")


def read_json(path: Path, kind: type[T], then: str = "run the same command") -> T | None:
    """What a JSON file holds, which is of that kind; None where there is no file. Raises `RunError` for another one; then: what
    follows once it is deleted.

    >>> read_json(Path("responses/together.json"), list[list[str]])
    """
    if not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_python(json_text.parse(path.read_text(encoding="utf-8")), strict=True)
    except ValidationError as e:
        problem = f"{invalid_reason(e.errors()[0])}, found {json_text.shown(e.errors()[0]['input'])}"
    except (OSError, ValueError) as e:
        problem = first_line(e)
    raise RunError(f"{path}: cannot be read ({problem}); delete it, and {then}")


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line that is not too long."""
    return json_text.shown((str(error).splitlines() or [type(error).__name__])[0], 200)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors and metadata. Raises `RunError` for a file that is not one."""
    try:
        with safe_open(path, framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as e:
        raise RunError(f"{path}: cannot be read: {first_line(e)}") from None


def plain(value: Any) -> Any:
    """Dataclasses, tuples and NaN as JSON has them (NaN is null).

    >>> plain({"layers": (18, 26), "order": float("nan")})
    {'layers': [18, 26], 'order': None}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


_SECRET = re.compile(
    r"[?&;][^=&;]*(?:secret|passw|token|signature|credential|access.?key|api.?key|\bsig\b|\bkey\b)[^=&;]*=[^&;]",
    re.IGNORECASE,
)
_BUCKETS = ("s3", "s3a", "gs", "gcs", "oss", "az", "abfs", "abfss")
_PORT = re.compile(r"[^/@]*:\d+(?:/.*)?", re.DOTALL)


def without_secrets(address: str) -> tuple[str, bool]:
    """An address as it may be shown, and whether it had credentials in it: a name and password before the host, a key or
    token among its parameters.

    >>> without_secrets("s3://AKIA:abc/def@bucket/run")
    ('s3://…@bucket/run', True)
    """
    # Of a chain (`simplecache::s3://…`), its last link; a secret may itself begin with two slashes.
    chain, link, last = address.rpartition("::")
    scheme, slashes, rest = last.partition("://")
    scheme = chain + link + scheme
    user, at_sign, host = rest.rpartition("@")
    if not slashes:
        return address, False  # a folder here
    # A secret may have slashes in it, a name has none; host:port/path@x is neither, and buckets have no ports.
    port = scheme.rpartition(":")[2] not in _BUCKETS and "/" in user and _PORT.fullmatch(user)
    in_user = ":" in user and "/" not in user.partition(":")[0] and not port
    shown_host, mark, _ = host.partition("?")
    in_parameters = _SECRET.search(host) is not None
    shown = (
        scheme
        + slashes
        + ("…" if in_user else user)
        + at_sign
        + (shown_host + "?…" if in_parameters and mark else host)
    )
    return shown, in_user or in_parameters


def check_address(address: str, option: str = "shards") -> None:
    """Raises `UsageError` for an address with credentials in it, which it does not show: it would stand in `run.json`, in logs
    and in a process list."""
    shown, has_secret = without_secrets(address)
    if has_secret:
        raise UsageError(
            f"{option}={shown}: found credentials in the address, expected none: give them by the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, …) or by the store's own settings"
        )


class Place:
    """Where shards lie: a folder, or an address that pyarrow or fsspec knows (`s3://…`, `gs://…`, `file:///…`).

    Raises `UsageError` for an address with credentials in it, `RunError` where it can't be reached, read or written.

    >>> place = Place("file:///tmp/shards")
    >>> place.write("responses/part-00000.parquet", b"PAR1")
    >>> place.names("responses")
    ['part-00000.parquet']
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        check_address(self.root)
        self.local = None if "://" in self.root else Path(root)

    def write(self, name: str, data: bytes) -> None:
        """A file, there whole or not at all."""
        if self.local:
            return write_whole(self.local / name, data)
        with self._told(name) as (files, path):
            # Object stores write whole files anyway; others that fsspec knows (a mounted or remote disk) do not.
            temporary = str(path.with_name(f".{path.name}.{_mine()}.tmp"))
            files.create_dir(str(path.parent), recursive=True)
            with files.open_output_stream(temporary) as f:
                f.write(data)
            files.move(temporary, str(path))

    def read(self, name: str) -> pa.Buffer:
        """A file's bytes."""
        with self._told(name) as (files, path), files.open_input_file(str(path)) as f:
            return f.read_buffer()

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        with self._told(name) as (files, path):
            return bool(files.get_file_info(str(path)).is_file)

    def names(self, folder: str) -> list[str]:
        """The files in a folder."""
        import pyarrow.fs

        with self._told(folder) as (files, path):
            entries = files.get_file_info(pyarrow.fs.FileSelector(str(path), allow_not_found=True))
            return sorted(f.base_name for f in entries if f.is_file)

    def remove(self, name: str) -> None:
        """Takes a file away."""
        with self._told(name) as (files, path):
            files.delete_file(str(path))

    # Every way to a place goes through here, so that whatever fails there is one line that names the address.
    @contextmanager
    def _told(self, name: str) -> Iterator[tuple[Any, PurePosixPath]]:
        import pyarrow as pa

        try:
            files, base = _filesystem(self.root if self.local is None else str(self.local.absolute()))
            yield files, PurePosixPath(base) / name
        except (OSError, pa.ArrowException, ValueError, ImportError) as e:
            raise RunError(f"{self.root}/{name}: cannot be reached, read or written: {first_line(e)}") from None


@cache  # a connection each, not one for each file
def _filesystem(root: str) -> tuple[Any, str]:
    """Arrow's own where it knows the address, otherwise fsspec's."""
    import pyarrow as pa
    import pyarrow.fs

    try:
        return pyarrow.fs.FileSystem.from_uri(root)  # type: ignore[no-any-return]
    except pa.ArrowInvalid:
        import fsspec

        files, path = fsspec.core.url_to_fs(root)
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(files)), path


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes the target's place when all is written in it, and is gone where that fails. Raises `RunError`
    where it can't be written, as where the target is there and not empty."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            new = Path(temporary, "new")
            new.mkdir()
            yield new
            os.replace(new, target)
    except OSError as e:
        raise RunError(f"{target}: cannot be written: {reason_of(e)}") from None


@contextmanager
def fetching(failure: str, error: type[PersonaSpaceError]) -> Iterator[None]:
    """Whatever the Hub fails with while this lasts is one line: the failure, and in brackets the reason."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError) as e:
        raise error(f"{failure} ({first_line(e)})") from None


def space_file(source: str, bundled: Path) -> Path:
    """A space's file, from its path, a run's folder, `hf://owner/name`, or `smollm2`, the bundled one. Raises `SpaceError`."""
    if source.startswith("hf://"):
        from huggingface_hub import hf_hub_download

        with fetching(f"{source}: cannot be fetched", SpaceError):
            return Path(hf_hub_download(source.removeprefix("hf://"), "space.safetensors"))
    path = Path(source)
    if source == "smollm2" and not path.exists():
        return bundled
    if path.is_dir():
        if not (path / "space.safetensors").is_file():
            raise SpaceError(
                f"{source}: no space.safetensors in the folder; is its map finished? Run `personaspace map` again"
            )
        return path / "space.safetensors"
    if not path.is_file():
        raise SpaceError(
            f"{source}: no such file or folder; expected a run's folder, a space.safetensors, hf://owner/name or smollm2"
        )
    return path
