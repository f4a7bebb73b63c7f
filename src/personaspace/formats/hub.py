"""The Hugging Face Hub: publishes a space there, with a card drawn from its figures, and fetches the study's files; uses the
network.

`PersonaSpace.load("hf://owner/name")` is the way back of what was published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from logging import ERROR, getLogger
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from personaspace.errors import SpaceError, UsageError
from personaspace.formats.reference import AXIS, DEFAULT, FILES, FOLDERS, PIPELINE_AXIS, PIPELINE_VECTORS, ROLES
from personaspace.report import words
from personaspace.space import PersonaSpace

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MARKDOWN = re.compile(r"([\\`*\[\]<>|#!~&])")
_ADDRESS = re.compile(r"hf://(datasets/)?(?!datasets/)([\w.-]+/[\w.-]+)(?:@([\w.-]+))?((?:/[\w.-]+)*)/?", re.ASCII)
EXAMPLE = "hf://datasets/lu-christina/assistant-axis-vectors/qwen-3-32b"


def push(
    space: PersonaSpace,
    target: str,
    *,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Uploads space.safetensors and README.md to `owner/name` (or `hf://owner/name`) as one commit, making the repository
    where there is none; returns its address.

    token, endpoint: None takes what the Hub's own tools are set to. Raises `UsageError` for another target, `SpaceError`
    where the Hub cannot be reached or refuses, and where it is to be private and the repository is public already.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HTTPError

    repo = target.removeprefix("hf://")
    if not _NAME.fullmatch(repo):
        raise UsageError(f"{target}: expected owner/name or hf://owner/name")
    api = HfApi(endpoint=endpoint, token=token)
    with TemporaryDirectory() as folder:
        file = Path(folder, "space.safetensors")
        space.save(file)
        try:
            url = str(api.create_repo(repo, private=private, exist_ok=True))
            if private and not api.model_info(repo).private:
                raise SpaceError(f"{target}: is there already, and public; nothing was uploaded, make it private first")
            card = CommitOperationAdd("README.md", model_card(space, repo).encode())
            api.create_commit(
                repo, [CommitOperationAdd(file.name, file), card], commit_message="Upload a persona space"
            )
        except (HTTPError, OSError, ValueError, RuntimeError) as e:
            raise SpaceError(f"{target}: cannot be uploaded: {_why(e)}") from None
    return url


def fetch_reference(source: str, *, token: str | None = None, endpoint: str | None = None) -> tuple[Path, str]:
    """A folder of the study's files from a repository of the Hub's, in its cache, and the commit that it is of.

    source: `hf://datasets/OWNER/NAME/FOLDER`, of a model's repository without `datasets/`, and `NAME@REVISION` for another
    branch, tag or commit than the main one. token, endpoint: None takes what the Hub's own tools are set to. Only `.pt` files
    of the study's names are fetched, and none where the folder lacks what a space takes. Raises `UsageError` for another
    address, `SpaceError` in one line for what is not there, or cannot be reached or fetched whole.

    >>> folder, commit = fetch_reference("hf://datasets/lu-christina/assistant-axis-vectors/qwen-3-32b")
    >>> space = read_reference(folder, "Qwen/Qwen3-32B")
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    address = _ADDRESS.fullmatch(source)
    if not address or ".." in source:
        raise UsageError(f"{source}: expected hf://datasets/OWNER/NAME/FOLDER, as in {EXAMPLE}")
    repo_type, repo, revision = "dataset" if address[1] else "model", address[2], address[3]
    folder = address[4].strip("/")
    api = HfApi(endpoint=endpoint, token=token)
    # What the client says on the way, of each file that it tries again: what comes of it is said below.
    getLogger("huggingface_hub").setLevel(ERROR)
    try:
        info = api.repo_info(repo, repo_type=repo_type, revision=revision)
        commit, names = str(info.sha), [file.rfilename for file in info.siblings or ()]
        wanted = _wanted(source, folder, names)
        # All of one commit: the repository may change while it is fetched.
        root = Path(api.snapshot_download(repo, repo_type=repo_type, revision=commit, allow_patterns=wanted))
    except (HTTPError, OSError, ValueError, RuntimeError) as e:
        raise SpaceError(f"{source}: cannot be fetched: {_why_not_fetched(e, repo, repo_type)}") from None
    # Where the network fails on the way, older clients give the part that is in the cache.
    if missing := [name for name in wanted if not (root / name).is_file()]:
        raise SpaceError(
            f"{source}: {len(missing)} of {len(wanted)} files were not fetched; run the same command again"
        )
    return root / folder, commit


def _wanted(source: str, folder: str, names: list[str]) -> list[str]:
    """Which of a repository's files are read. Raises `SpaceError` where the folder isn't one of the study's."""
    paths = {PurePosixPath(name) for name in names}
    here = {
        path
        for path in paths
        if (path.name in FILES and path.parent == PurePosixPath(folder))
        or (path.suffix == ".pt" and path.parent in {PurePosixPath(folder, group) for group in FOLDERS})
    }
    groups = {path.relative_to(folder).parts[0] for path in here}
    axes = {f"{name}.pt" for name in (AXIS, DEFAULT, PIPELINE_AXIS)}
    lacking = [f"{ROLES}/*.pt"] * (not groups & {ROLES, PIPELINE_VECTORS})
    lacking += [f"{AXIS}.pt or {DEFAULT}.pt"] * (
        not groups & axes and PurePosixPath(folder, "vectors/default.pt") not in here
    )
    if not lacking:
        return sorted(map(str, here))
    others = sorted({str(path.parent) for path in paths if path.name in axes and path.parent != PurePosixPath(folder)})
    hint = f"the repository has such files in {', '.join(others[:8])}" if others else f"expected them as in {EXAMPLE}"
    raise SpaceError(f"{source}: no {' and no '.join(lacking)} there; {hint}")


def _why_not_fetched(error: Any, repo: str, repo_type: str) -> str:
    """One line on what went wrong, and what to do about it."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return f"{repo} asks for its terms to be accepted on its page first; then run `hf auth login` or set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such revision"
    if isinstance(error, RepositoryNotFoundError):
        other = "hf://OWNER/NAME" if repo_type == "dataset" else "hf://datasets/OWNER/NAME"
        return (
            f"the Hub has no {'data set' if repo_type == 'dataset' else repo_type} {repo} that may be read from here; "
            f"check the name ({other} is another kind), or run `hf auth login` where it is private"
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        place = str(error.response.url).partition("/resolve/")[2].partition("/")[2]
        return f"{place or 'a file'} is listed in {repo}, but not there"
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
    if getattr(error, "response", None) is not None:
        return f"the Hub refuses: {line}"
    return f"the Hub cannot be reached ({line}); a folder of files that were fetched another way is read as it is"


def model_card(space: PersonaSpace, repo: str) -> str:
    """The README.md of a space on the Hub: what it is, its figures, and how to load it."""
    s = space.summary()
    # What stands in a card is read as Markdown, and a name is none.
    s = {**s, "roles": [{**role, "name": as_markdown(role["name"])} for role in s["roles"]]}
    names, on_hub = [role["name"] for role in s["roles"]], _NAME.fullmatch(s["model"])
    # A folder of the user's is not told to the world.
    model = s["model"] if on_hub else re.sub(r"[`\s]+", " ", Path(s["model"]).name)
    base = f"base_model: {model}\n" if on_hub else ""
    n = min(10, len(names) // 2)
    ends = (
        words.order(s)
        if s["order_known"] is False
        else f"""Most Assistant-like: {", ".join(names[:n]) or "too few roles"}.

Least Assistant-like: {", ".join(names[::-1][:n]) or "too few roles"}.

{words.order(s)}"""
    )
    return f"""---
library_name: personaspace
{base}tags:
- personaspace
- interpretability
- assistant-axis
- activation-steering
---

# The persona space of {as_markdown(model)}

Role vectors, the Assistant Axis and their principal components, read from the residual stream of `{model}`.

## How sure it is

{words.INTRODUCTION} {words.SOURCE}

| read from | figure | value | in words |
| --- | --- | --- | --- |
{_reliabilities(s)}
{words.agreement(s)}

## Figures

Read from {words.read_from(s["reading"])}.

| figure | value |
| --- | --- |
| layer | {s["layer"]} of {s["layers"]}, counted from 0 |
| roles | {s["n_roles"]} |
| responses | {_said(s["n_responses"])} |
| cosine of axis and PC1 | {_said(s["axis_pc1_cosine"])} |
| reliability of the axis | {_said(s["axis_reliability"])} |
| components for 70% of the roles' variance | {_said(s["components_for_70pct"])} |

As measured, these figures have noise in them; what is known of it, and the study's own, which are no marks to pass:

| figure | as measured | noise taken out | roles shuffled | the study |
| --- | --- | --- | --- | --- |
{_beside(s)}

{ends}

```python
from personaspace import PersonaSpace

space = PersonaSpace.load("hf://{repo}")
```
"""


def as_markdown(text: str) -> str:
    """A text on one line as Markdown shows it unchanged.

    >>> print(as_markdown("a <b>ghost</b>"))
    a \\<b\\>ghost\\</b\\>
    """
    return _MARKDOWN.sub(r"\\\1", " ".join("".join(c if c.isprintable() else " " for c in text).split()))


def _reliabilities(s: Mapping[str, Any]) -> str:
    rows = []
    for reading, worth in s["readings"].items():
        for r in words.reliabilities(worth):
            by_text = "" if r.by_text is None else f" With other instructions as well: {words.number(r.by_text)}."
            in_words = " ".join(text for text in (r.meaning + by_text, r.takes) if text)
            rows.append(f"| {reading} | {r.name} | {r.shown} | {in_words} |")
    return "\n".join(rows)


def _beside(s: Mapping[str, Any]) -> str:
    rows = []
    for row in words.beside(s):
        measured, corrected = (
            f"{x} ({interval})" if interval else x or "not known"
            for x, interval in ((row.measured, row.interval), (row.corrected, row.corrected_interval))
        )
        rows.append(f"| {row.name} | {measured} | {corrected} | {row.shuffled or 'not known'} | {row.study} |")
    return "\n".join(rows)


def _said(value: float | None) -> str:
    if value is None:
        return "not known"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _why(error: Any) -> str:
    """One line on what went wrong, and what to do about it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the Hub knows no valid token; run `hf auth login` or set HF_TOKEN"
    if status == 403:
        return "the token may not write there; expected one with write access to the owner"
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if status else f"{line}; is the network there?"
