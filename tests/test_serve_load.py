"""Many clients at once, a full queue, and a server that is told to stop while it answers."""

from __future__ import annotations

import gc
import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from forked import begin_program
from personaspace.engines.transformers.batching import Row
from personaspace.serve.completions import Pending
from personaspace.serve.scheduler import Job
from served import engine, serving, space, until

HELLO = [{"role": "user", "content": "hello"}]


def asked(k):
    messages = [{"role": "user", "content": "why? " * (k % 5) + f"thing {k % 16}"}]
    return {"model": ("tiny", "tiny:capped")[k % 2], "messages": messages, "temperature": 0, "max_tokens": 6 + k % 16}


def whole(url, k):
    return httpx.post(url, json=asked(k), timeout=60).json()["choices"][0]["message"]["content"]


def hang_up(url, k):
    with httpx.stream("POST", url, json={**asked(k), "stream": True, "max_tokens": 400}, timeout=60) as answer:
        next(answer.iter_lines())


def sixty_four(url):
    """A round of 64 clients of which every seventh hangs up; what the others got, by their number."""
    with ThreadPoolExecutor(64) as pool:
        futures = {k: pool.submit(hang_up if k % 7 == 3 else whole, url, k) for k in range(64)}
        found = {k: future.result() for k, future in futures.items()}
    return {k: text for k, text in found.items() if k % 7 != 3}


def idle(worker):
    """Waits until nothing runs and nothing waits; whether it came to that."""
    for _ in range(200):
        if not worker.running and not worker.waiting:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.long
def test_many_at_once_mixed_and_hanging_up_get_what_they_get_alone_and_leave_nothing_behind(space, engine):
    with serving(space, engine, rows=8, queue=64) as (address, worker):
        url = f"{address}/v1/chat/completions"
        alone = {k: whole(url, k) for k in range(64)}
        seen = []
        worker.submit = watched(worker, seen)
        assert all(text == alone[k] for k, text in sixty_four(url).items())
        assert idle(worker)
        assert max(seen) <= 64
        assert worker.model_lock.admitted == 0
        # A loop that waits still has the reply that ended last at hand; whoever hung up may be noticed a moment later.
        until(lambda: len(in_memory()) <= 1, seconds=5, every=0.5)


def in_memory():
    """The requests and replies that something still refers to."""
    gc.collect()
    return [type(thing).__name__ for thing in gc.get_objects() if type(thing) in (Job, Pending, Row)]


def watched(worker, seen):
    """The worker's `submit`, noting how many wait after each request."""
    submit = worker.submit

    def noting(jobs):
        submit(jobs)
        seen.append(len(worker.waiting))

    return noting


def test_a_full_queue_answers_429_with_when_to_come_back(space, engine):
    with serving(space, engine, rows=1, queue=1, max_tokens=400) as (address, worker):
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 400, "temperature": 1, "seed": 1, "stream": True}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as running:
            next(running.iter_lines())
            with ThreadPoolExecutor(4) as pool:
                others = [
                    pool.submit(httpx.post, f"{address}/v1/chat/completions", json=body, timeout=60) for _ in range(4)
                ]
                time.sleep(0.3)
                assert len(worker.waiting) <= 1
                running.close()
                answers = [o.result() for o in others]
        refused = [a for a in answers if a.status_code == 429]
        assert refused
        assert all(int(a.headers["retry-after"]) >= 1 and a.json()["error"]["code"] == "queue_full" for a in refused)


@pytest.fixture
def started(tmp_path):
    """Starts `personaspace serve smollm2` as a user would; yields how: its process, where it is asked, and its log."""
    processes, log = [], tmp_path / "log"

    def start(*options):
        process = begin_program(log, "serve", "smollm2", "--port", "0", *options)
        processes.append(process)
        until(lambda: log.exists() and "\n" in log.read_text(), seconds=60)
        address = re.search(r"http://[\d.:]+", log.read_text()).group()
        for _ in range(200):
            try:
                if httpx.get(f"{address}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        return process, f"{address}/v1/chat/completions", log

    yield start
    for process in processes:
        process.kill()
        process.join()


def tell(url, tokens, stream):
    """A long story's status and text, all of it."""
    messages = [{"role": "user", "content": "Tell me a very long story."}]
    body = {"model": "smollm2:capped", "messages": messages, "max_tokens": tokens, "seed": 1, "stream": stream}
    with httpx.stream("POST", url, json=body, timeout=60) as answer:
        return answer.status_code, "".join(answer.iter_text())


def running(url):
    """How many replies are being made or wait for it."""
    told = httpx.get(url.replace("/v1/chat/completions", "/metrics"), timeout=30).text
    return sum(float(n) for n in re.findall(r"^personaspace_(?:running|queue) (\S+)", told, re.M))


@pytest.mark.long
@pytest.mark.parametrize("grace", [100, 1], ids=["in-time", "overdue"])
def test_a_server_that_is_told_to_stop_finishes_what_it_can_tells_the_rest_and_exits_cleanly(started, grace):
    process, url, log = started("--grace", str(grace))
    first = log.read_text()
    tokens = 48 if grace == 100 else 1000
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(tell, url, tokens, stream) for stream in (True, False, True, False)]
        while running(url) < 4:
            time.sleep(0.05)
        process.terminate()
        answers = [r.result() for r in replies]
    process.join(30)
    assert process.exitcode == 0
    assert log.read_text() == first
    for (status, text), stream in zip(answers, (True, False, True, False), strict=True):
        if grace == 100:
            assert status == 200
            assert ("[DONE]" if stream else '"finish_reason":"length"') in text
        else:
            assert status == (200 if stream else 503)
            assert '"server_stopping"' in text
            assert "[DONE]" not in text
