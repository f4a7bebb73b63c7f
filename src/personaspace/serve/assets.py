"""The page's files, from memory: their names are fixed at the start, so that nothing of a request becomes a path."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from plotly.offline import get_plotlyjs
from starlette.exceptions import HTTPException

PAGE = Path(__file__).parent / "page"
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
}
KEEP = {"Cache-Control": "max-age=604800"}
"""For Plotly, which changes with its package only; the page's own files are asked for anew each time, and answered 304."""


@dataclass(frozen=True)
class Asset:
    """A file as it goes out, plain and compressed."""

    content: bytes
    kind: str

    @cached_property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:20]}"'

    @cached_property
    def small(self) -> bytes:
        return gzip.compress(self.content, 6, mtime=0)

    def answer(self, request: Request, headers: dict[str, str]) -> Response:
        """The file, or that the client has it already."""
        headers = {**HEADERS, "ETag": self.tag, **headers}
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self.small, media_type=self.kind, headers={**headers, "Content-Encoding": "gzip"})
        return Response(self.content, media_type=self.kind, headers=headers)


@cache
def plotly() -> Asset:
    """Plotly's script, read and compressed once a process."""
    return Asset(get_plotlyjs().encode(), "text/javascript")


def add_pages(app: FastAPI, framed_by: Sequence[str] = ()) -> None:
    """The page at `/`, and its parts. framed_by: origins whose pages may show it in a frame."""
    ancestors = " ".join(framed_by) or "'none'"
    policy = {"Content-Security-Policy": f"{POLICY}; frame-ancestors {ancestors}"}
    kinds = {p: mimetypes.guess_type(p.name)[0] or "application/octet-stream" for p in PAGE.iterdir() if p.is_file()}
    files = {p.name: Asset(p.read_bytes(), kind) for p, kind in kinds.items()}
    fresh = {**policy, "Cache-Control": "no-cache"}

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return files["index.html"].answer(request, fresh)

    @app.get("/page/plotly.js", include_in_schema=False)
    async def script(request: Request) -> Response:
        return await asyncio.to_thread(lambda: plotly().answer(request, {**policy, **KEEP}))

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404, "no such file")
        return files[name].answer(request, fresh)
