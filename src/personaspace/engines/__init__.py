"""What answers prompts and reads the residual stream meanwhile: one protocol, and an engine a way of running a model."""

from __future__ import annotations

from personaspace.engines.chat import Span
from personaspace.engines.protocol import ONSET, Conversation, Engine, Layers, ModelInfo, Response, Token, Turn
from personaspace.engines.registry import load_engine

__all__ = [
    "ONSET",
    "Conversation",
    "Engine",
    "Layers",
    "ModelInfo",
    "Response",
    "Span",
    "Token",
    "Turn",
    "load_engine",
]
