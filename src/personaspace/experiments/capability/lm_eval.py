"""Puts lm-eval's tasks to a running server, once under each of its models' names, and keeps every item's result.

Talks over the network, to the server and to wherever a task's data come from; what a task asks is lm-eval's business.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from personaspace.errors import RunError, UsageError
from personaspace.experiments.kit.trials import PLAIN, Condition, Trials
from personaspace.files import first_line, read_rows, write_table

CHUNK = 64
"""Items asked at a time: what a killed experiment may have to ask again."""
AT_ONCE = 8
"""Requests that are under way together; the server decodes them in one batch."""
ITEMS = {"ifeval": 541, "mmlu_pro": 12032, "gsm8k": 1319, "eq_bench": 171}
"""How many items the published tasks have."""

SCORED = pa.schema(
    [(name, pa.float64() if name == "value" else pa.string()) for name in ("task", "item", "measure", "value", "text")]
)


@dataclass(frozen=True)
class Harness:
    """lm-eval's manager, its tasks by the name that was asked for (a group stands for several), a server's models by
    condition."""

    manager: Any
    tasks: Mapping[str, Sequence[Any]]
    models: Mapping[str, str]
    url: str

    def measure(self, trials: Trials[Any], limit: int | None) -> list[dict[str, Any]]:
        """A row an item, measure and condition; what is in the folder already is read from there. Raises `RunError`."""
        tokenizer = trials.folder / "tokenizer"
        trials.engine.chat.tokenizer.save_pretrained(tokenizer)
        rows = []
        for task_name, parts in self.tasks.items():
            for task in parts:
                n = len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))
                for condition, model in self.models.items():
                    for first in range(0, n, CHUNK):
                        name = re.sub(r"[^\w.@-]", "_", f"lm-eval-{task.config.task}-{condition}")
                        path = trials.responses / f"{name}-{first // CHUNK:05d}.parquet"
                        if not path.is_file():
                            self._check()
                            trials.watcher.note(f"lm-eval: {task.config.task}, {model}, from item {first} of {n}")
                            scored = self._ask(task, model, range(first, min(first + CHUNK, n)), str(tokenizer), trials)
                            write_table(path, pa.Table.from_pylist(scored, schema=SCORED))
                        rows += [{"part": task_name, "condition": condition, **row} for row in read_rows(path)]
        return rows

    def _check(self) -> None:
        """Whether the server is there and has the models. Raises `UsageError`, `RunError`."""
        if not self.url:
            raise UsageError(
                "--tasks needs --url, the address of a running `personaspace serve`: --url http://127.0.0.1:8000/v1"
            )
        served_names = _served(self.url)
        for name in self.models.values():
            if name not in served_names:
                raise RunError(f"--url {self.url}: has no model {name}; it has {', '.join(served_names)}")

    def _ask(self, task: Any, model: str, items: range, tokenizer: str, trials: Trials[Any]) -> list[dict[str, Any]]:
        import aiohttp
        from lm_eval import simple_evaluate

        chat = task.OUTPUT_TYPE == "generate_until"
        arguments: dict[str, Any] = {"model": model, "num_concurrent": AT_ONCE, "timeout": 3600}
        if chat:
            arguments |= {"base_url": f"{self.url}/chat/completions"}
        else:
            length = {"max_length": trials.engine.info.context} if trials.engine.info.context else {}
            arguments |= {"base_url": f"{self.url}/completions", "tokenizer": tokenizer, **length}
            arguments |= {"tokenizer_backend": "huggingface"}
        name = task.config.task
        quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())  # from lm-eval's own bars
        try:
            with quiet:
                evaluated = simple_evaluate(
                    model="local-chat-completions" if chat else "local-completions",
                    model_args=arguments,
                    tasks=[task],
                    task_manager=self.manager,
                    samples={name: list(items)},
                    apply_chat_template=chat,
                    bootstrap_iters=0,
                    log_samples=True,
                )
        except (OSError, aiohttp.ClientError) as e:
            raise RunError(
                f"--url {self.url}: {first_line(e)}, while {name} was asked; what was "
                "answered is kept, and the same command goes on"
            ) from None
        return [row for s in evaluated["samples"][name] for row in _rows(name, s)]


def _rows(task: str, sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a measure of an item that is a number, named with its filter where it has one."""
    text = json.dumps(sample["filtered_resps"], default=str)[:2000]
    base = {"task": task, "item": f"{task}/{sample['doc_id']}", "text": text}
    return [
        {
            **base,
            "measure": metric if sample["filter"] == "none" else f"{metric}, {sample['filter']}",
            "value": float(value),
        }
        for metric in sample["metrics"]
        if isinstance(value := sample[metric], (bool, int, float))
    ]


def ready(tasks: Sequence[str], url: str, include_path: str, conditions: Sequence[Condition], model: str) -> Harness:
    """Finds the tasks; nothing is asked yet. Only what a model's name can say is put to the server: plain, and each cap.
    Raises `UsageError`."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UsageError("--tasks needs lm-eval: pip install 'personaspace[eval]'") from None
    served = model.rsplit("/", 1)[-1]
    models = {c.name: f"{served}:{c.cap}" if c.cap else served for c in conditions if c.cap or c == PLAIN}
    # lm-eval's own 14,000 take seconds to list, which tasks of one's own need not wait for.
    manager = TaskManager(include_path=include_path or None, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include_path or None)
    loaded_tasks = {}
    for name in tasks:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise UsageError(
                f"--tasks {name}: lm-eval has no such task{hint}; --include-path names a folder of your own"
            )
        try:
            loaded_tasks[name] = list(manager.load([name])["tasks"].values())
        except (OSError, ValueError) as e:
            raise UsageError(f"--tasks {name}: cannot be loaded: {first_line(e)}") from None
    return Harness(manager, loaded_tasks, models, url.rstrip("/").removesuffix("/v1") + "/v1" if url else "")


def _served(url: str) -> list[str]:
    """The names of a server's models. Raises `RunError`."""
    key = os.environ.get("OPENAI_API_KEY", "")
    try:
        request = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {key}"} if key else {})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return [m["id"] for m in json.load(answer)["data"]]
    except urllib.error.HTTPError as e:
        hint = "; its key is taken from OPENAI_API_KEY" if e.code == 401 else ""
        raise RunError(f"--url {url}: answered {e.code} {e.reason}{hint}") from None
    except (OSError, ValueError, KeyError) as e:
        raise RunError(f"--url {url}: no server that lists its models answers there ({e})") from None
