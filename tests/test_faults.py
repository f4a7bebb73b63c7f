"""What may befall a run: signals, secrets, other versions. Each has one true line, and a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import personaspace as ps
from conftest import make_model, make_tokenizer
from forked import begin_program, finish, small_shards
from personaspace import cli
from personaspace.cli import main
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import ActivationError, RunMismatch, UsageError
from personaspace.files import Place, without_secrets
from personaspace.space import PersonaSpace

# -- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_map_in_one_line_and_the_same_command_goes_on(
    tmp_path, tiny_folder, small_catalog, number, code
):
    out, log = tmp_path / "run", tmp_path / "log"
    command = ["map", tiny_folder, "--out", out, "--catalog", small_catalog, "--per-role", "40", "--rows", "8"]
    command += ["--read", "reply", "--max-new-tokens", "16"]

    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.glob("responses/part-*.parquet")}

    process = begin_program(log, *command, before=small_shards)
    while not stamps():
        assert process.is_alive(), log.read_text()
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join(60)
    lines = log.read_text().splitlines()
    assert process.exitcode == code
    assert lines[-1] == "personaspace: stopped; what was finished is kept, the same command goes on from there"
    assert not any("Traceback" in line for line in lines)
    before = stamps()
    assert not (out / "space.safetensors").exists()
    finish(begin_program(log, *command, before=small_shards))
    assert stamps().items() > before.items()
    assert PersonaSpace.load(out).summary()["n_responses"] > 6 * 40


def test_a_command_that_keeps_nothing_does_not_say_that_it_does(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    for command in ("chat", "project", "bench", "map"):
        monkeypatch.setattr(sys, "argv", ["personaspace", command, "smollm2"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 130
        assert ("is kept" in capsys.readouterr().err) == (command == "map")


@pytest.mark.long
def test_who_ignores_sigterm_goes_on_ignoring_it(tmp_path):
    code = (
        "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "from personaspace.cli import app, main\n"
        "app.command('wait')(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "import sys; sys.argv = ['personaspace', 'wait']; main()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_after_the_program_has_ended_signals_are_as_they_were(monkeypatch):
    earlier = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["personaspace", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert signal.getsignal(signal.SIGTERM) is earlier


# -- secrets ---------------------------------------------------------------------------------------------------------

SECRETS = [
    "s3://AKIA:hunter2@bucket/run",
    "s3://AKIA:hun/ter2@bucket/run",
    "s3://bucket/run?secret_key=hunter2",
    "s3://bucket/run?region=x&AWS_SECRET_ACCESS_KEY=hunter2",
    "abfs://box@account.dfs.core.windows.net/run?sig=hunter2",
    "sftp://me:hunter2@host:22/run",
    "simplecache::s3://AKIA:hunter2@bucket/run",
    "gs://bucket/run?access_token=hunter2",
]
PLAIN = [
    "s3://bucket/run",
    "s3://bucket/run?region=eu-1&endpoint_override=localhost:9000",
    "gs://anonymous@bucket/run",
    "abfs://box@account.dfs.core.windows.net/run",
    "hdfs://me@host:8020/run",
    "hdfs://host:8020/user@home/run",
    "file:///tmp/a:b@c/run",
    "runs/a:b@c",
    "memory://x",
]


@pytest.mark.parametrize("address", SECRETS)
def test_an_address_with_credentials_is_refused_before_anything_is_written_and_never_shown(
    address, tmp_path, tiny_folder, small_catalog, monkeypatch, capsys
):
    arguments = ["map", tiny_folder, "--out", tmp_path / "run", "--catalog", small_catalog, "--shards", address]
    monkeypatch.setattr(sys, "argv", ["personaspace", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith("personaspace: --shards ")
    assert len(told.splitlines()) == 1
    assert "environment" in told
    assert "hunter2" not in told
    assert "ter2" not in told
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError) as problem:
        Place(address)
    assert "ter2" not in str(problem.value)


@pytest.mark.parametrize("address", PLAIN)
def test_an_address_without_credentials_is_as_it_is(address):
    assert without_secrets(address) == (address, False)


@given(st.text("abcAB+=09", min_size=1), st.text("abcAB/+=09", min_size=2))
def test_no_key_and_secret_before_a_bucket_are_shown(key, secret):
    shown, has_secret = without_secrets(f"s3://{key}:{secret}@bucket/run")
    assert has_secret
    assert shown == "s3://…@bucket/run"


# -- advice ----------------------------------------------------------------------------------------------------------


def test_after_nan_the_advice_can_be_taken(tmp_path, small_catalog):
    rough = TransformersEngine(make_model("llama").to(torch.bfloat16), make_tokenizer(), id="tiny", rows=16)
    rough.layers[2].register_forward_hook(lambda _, __, hidden: hidden * float("nan"))
    options = {"catalog": small_catalog, "read": "prompt", "prompts_per_role": 2, "default_prompts": 6}
    with pytest.raises(ActivationError, match=r"NaN or Inf .*dtype=fp32 \(a map: into a new folder") as problem:
        ps.map(rough, tmp_path / "run", **options)
    assert len(str(problem.value).splitlines()) == 1
    sound = TransformersEngine(make_model("llama"), make_tokenizer(), id="tiny", rows=16)
    with pytest.raises(RunMismatch, match=r"model\.dtype: bfloat16 → float32"):
        ps.map(sound, tmp_path / "run", **options)
    assert ps.map(sound, tmp_path / "new", **options).summary()["n_responses"] == 6 * 2 + 6
