"""The engine on vLLM, and what users of plain vLLM need of it: how to read what came out."""

from personaspace.engines.vllm.wire import ReadMeans, unpack

__all__ = ["ReadMeans", "unpack"]
