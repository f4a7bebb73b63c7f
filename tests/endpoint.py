"""An OpenAI-compatible endpoint on loopback that answers as a test plans it."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler


class Endpoint(BaseHTTPRequestHandler):
    """Answers as an OpenAI endpoint would; `plan` says how, by request."""

    plan: list[str] = []  # noqa: RUF012 - set by each test
    asked: list[str] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Endpoint.asked.append(body["messages"][0]["content"])
        how = Endpoint.plan.pop(0) if Endpoint.plan else "3"
        status = int(how) if len(how) == 3 else 200
        answer = {
            "id": "x", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": how}}],
        }  # fmt: skip
        data = json.dumps(answer if status == 200 else {"error": {"message": "no"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""
