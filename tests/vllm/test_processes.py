"""In processes of vLLM's own, as it runs by default: one worker, and two that share each layer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_numbers import alike, load_reference, replayed

from personaspace.engines.prompts import Prompt
from personaspace.model.interventions import Cap

PROGRAM = """
import json, sys
import torch
from safetensors.torch import save_file
from personaspace.engines.vllm.engine import VllmEngine
from personaspace.model.interventions import from_dict
from personaspace.engines.prompts import Prompt, Sampling

if __name__ == "__main__":
    folder, out, ranks, cap = sys.argv[1:]
    engine = VllmEngine.load(
        folder, dtype="fp32", enforce_eager=True, max_model_len=256, max_num_seqs=4,
        kv_cache_memory_bytes=32 << 20, tensor_parallel_size=int(ranks),
    )
    capped = (from_dict(json.loads(cap)),)
    asked = [
        Prompt(({"role": "user", "content": f"Say {k}."},), question=k, interventions=capped if k % 2 else ())
        for k in range(4)
    ]
    found = {}
    for r in engine.respond(asked, Sampling(temperature=0, max_new_tokens=8), read=range(engine.info.layers)):
        found[f"{r.prompt.question}.activation"] = r.activation.contiguous()
        found[f"{r.prompt.question}.ids"] = torch.tensor(r.token_ids)
        found[f"{r.prompt.question}.touched"] = torch.tensor(r.touched)
    save_file(found, out)
    engine.close()
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_workers_of_their_own_read_and_hold_the_same(ranks: int, folders: Callable[[str], str], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    reference = load_reference(folders("llama"))
    cap = Cap(torch.randn(128, generator=torch.Generator().manual_seed(0)), (0, 1, 2), floor=4.0)
    program, out = tmp_path / "program.py", tmp_path / "out.safetensors"
    program.write_text(PROGRAM)
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    if ranks > 1:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    done = subprocess.run(
        [sys.executable, str(program), folders("llama"), str(out), str(ranks), json.dumps(cap.to_dict())],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found = load_file(out)
    for k in range(4):
        prompt = Prompt(({"role": "user", "content": f"Say {k}."},), question=k)
        given = (cap,) if k % 2 else ()
        from personaspace.engines import Response

        r = Response(prompt, "", tuple(found[f"{k}.ids"].tolist()), "length")
        assert alike(found[f"{k}.activation"], replayed(reference, r, given)) >= 0.9999
        assert (int(found[f"{k}.touched"]) > 0) == bool(given)
