"""What answers prompts and reads the residual stream meanwhile: one protocol, and an engine a way of running a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personaspace._lazy import lazy_names

if TYPE_CHECKING:
    from personaspace.engines.chat import Span as Span
    from personaspace.engines.protocol import ONSET as ONSET
    from personaspace.engines.protocol import Conversation as Conversation
    from personaspace.engines.protocol import Engine as Engine
    from personaspace.engines.protocol import Layers as Layers
    from personaspace.engines.protocol import LocalEngine as LocalEngine
    from personaspace.engines.protocol import ModelInfo as ModelInfo
    from personaspace.engines.protocol import Response as Response
    from personaspace.engines.protocol import Token as Token
    from personaspace.engines.protocol import Turn as Turn
    from personaspace.engines.registry import load_engine as load_engine

NAMES = {"Span": "personaspace.engines.chat", "load_engine": "personaspace.engines.registry"} | dict.fromkeys(
    ("ONSET", "Conversation", "Engine", "Layers", "LocalEngine", "ModelInfo", "Response", "Token", "Turn"),
    "personaspace.engines.protocol",
)
__all__ = list(NAMES)
__getattr__, __dir__ = lazy_names(__name__, NAMES)
