"""What goes from the decode thread to a client that streams, however far the thread is ahead of it."""

from __future__ import annotations

import asyncio
import json

import pytest

from personaspace.serve import Settings
from personaspace.serve.completions import Requests
from personaspace.serve.metrics import Metrics
from personaspace.serve.persona import Reader
from personaspace.serve.scheduler import Event, Worker
from personaspace.serve.types import ChatCompletion, TextCompletion
from served import engine, space

HELLO = [{"role": "user", "content": "hello"}]


class Held:
    """A worker that decodes nothing by itself."""

    def __init__(self):
        self.waiting, self.running, self.jobs, self.queue = [], {}, [], 64

    def submit(self, jobs):
        self.jobs += jobs


def requests_of(space, engine, worker, **settings):
    return Requests(engine, Reader.of(space, "tiny"), worker, Metrics(space, worker), Settings(**settings), 512)


def data(line):
    return json.loads(line.removeprefix("data: "))


@pytest.mark.long
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "text"])
def test_every_token_is_listed_once_with_its_log_probability_however_far_decoding_is_ahead(space, engine, chat):
    worker = Held()
    requests = requests_of(space, engine, worker)
    asked = {"model": "tiny", "stream": True, "max_tokens": 9}
    body = (
        ChatCompletion(**asked, messages=HELLO, logprobs=True)
        if chat
        else TextCompletion(**asked, prompt="x", logprobs=0)
    )

    async def told():
        running = await requests.begin(body)
        (job,) = worker.jobs
        row, seen = job.row, []
        row.out, row.logs = [10], [(-10.0, [])]
        job.emit(Event("a", token_count=1))
        async for line in requests.stream(running, body):
            if "[DONE]" in line:
                break
            found = data(line)["choices"][0]["logprobs"]
            seen.append([t["logprob"] for t in found["content"]] if chat else found["token_logprobs"])
            if len(seen) == 1:  # the thread is done before the first chunk is on its way
                row.out, row.end = [10, 11, 12], 2
                row.logs = [(-10.0, []), (-11.0, []), (-12.0, []), (-2.0, [])]
                job.emit(Event("b", token_count=2))
                job.emit(Event("c", finish="stop", token_count=4))
        return seen

    assert asyncio.run(told()) == [[-10.0], [-11.0], [-12.0] if chat else [-12.0, -2.0]]


def test_a_reply_whose_client_does_not_read_is_given_up(space, engine, monkeypatch):
    monkeypatch.setattr("personaspace.serve.completions.UNREAD", 20)
    worker = Worker(engine, space.layer, space.axis_at(), rows=1, queue=4, columns=512)
    requests = requests_of(space, engine, worker)
    body = ChatCompletion(model="tiny", messages=HELLO, stream=True, n=2, max_tokens=400, temperature=2.0)

    async def read():
        running = await requests.begin(body)
        stream = requests.stream(running, body)
        await anext(stream)
        for _ in range(500):
            if all(r.job.cancelled for r in running.replies) and not worker.running and not worker.waiting:
                break
            await asyncio.sleep(0.01)
        kept = running.events.qsize()
        return kept, [line async for line in stream]

    monkeypatch.setattr(engine.chat, "end_ids", frozenset())
    worker.start()
    try:
        kept, lines = asyncio.run(read())
    finally:
        worker.stop()
    assert 20 <= kept < 80
    assert data(lines[-1])["error"]["code"] == "not_read"
