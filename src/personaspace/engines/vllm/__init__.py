"""The engine on vLLM, and what users of plain vLLM need of it: how to read what came out."""

from personaspace.engines.vllm.wire import Reading, unpack

__all__ = ["Reading", "unpack"]
