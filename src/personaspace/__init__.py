"""Map the characters inside a chat language model, find its Assistant Axis, and hold it there.

>>> import personaspace as ps
>>> space = ps.map("smollm2", out="runs/smollm2", per_role=4, questions=120, max_new_tokens=32)
>>> space.summary()["axis_pc1_cosine"]
"""

from personaspace.api import map
from personaspace.catalog import Catalog, load_catalog
from personaspace.engines import Engine, Response, Span, Token, Turn, load_engine
from personaspace.engines.prompts import Design, Prompt, Sampling
from personaspace.errors import PersonaSpaceError
from personaspace.model.interventions import Ablate, Add, Cap
from personaspace.model.residual import attach
from personaspace.report.map import write_report
from personaspace.space import PersonaSpace

__all__ = [
    "Ablate",
    "Add",
    "Cap",
    "Catalog",
    "Design",
    "Engine",
    "PersonaSpace",
    "PersonaSpaceError",
    "Prompt",
    "Response",
    "Sampling",
    "Span",
    "Token",
    "Turn",
    "attach",
    "load_catalog",
    "load_engine",
    "map",
    "write_report",
]
