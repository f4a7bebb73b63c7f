"""Map the characters inside a chat language model, find its Assistant Axis, and hold it there.

>>> import personaspace as ps
>>> space = ps.PersonaSpace.load("smollm2")  # or your own: ps.map("Qwen/Qwen3-4B", "runs/qwen3")
>>> len(space.roles), list(space.caps)[:2], round(space.summary()["axis_pc1_cosine"], 2)
(275, ['capped', 'default-p1@18:26'], 0.56)
"""

from typing import TYPE_CHECKING

from personaspace._lazy import lazy_names

if TYPE_CHECKING:
    from personaspace._version import __version__ as __version__
    from personaspace.api import calibrate as calibrate
    from personaspace.api import compare as compare
    from personaspace.api import experiment as experiment
    from personaspace.api import judge as judge
    from personaspace.api import map as map
    from personaspace.api import project as project
    from personaspace.api import watch as watch
    from personaspace.catalog import Catalog as Catalog
    from personaspace.catalog import load_catalog as load_catalog
    from personaspace.engines.chat import Span as Span
    from personaspace.engines.prompts import Design as Design
    from personaspace.engines.prompts import Prompt as Prompt
    from personaspace.engines.prompts import Sampling as Sampling
    from personaspace.engines.protocol import Engine as Engine
    from personaspace.engines.protocol import Response as Response
    from personaspace.engines.protocol import Token as Token
    from personaspace.engines.protocol import Turn as Turn
    from personaspace.engines.registry import load_engine as load_engine
    from personaspace.errors import PersonaSpaceError as PersonaSpaceError
    from personaspace.experiments.watch.callback import WatchCallback as WatchCallback
    from personaspace.model.attach import attach as attach
    from personaspace.model.interventions import Ablate as Ablate
    from personaspace.model.interventions import Add as Add
    from personaspace.model.interventions import Cap as Cap
    from personaspace.model.interventions import Decaying as Decaying
    from personaspace.model.interventions import Mirror as Mirror
    from personaspace.model.interventions import SetTo as SetTo
    from personaspace.report.map import write_report as write_report
    from personaspace.space import PersonaSpace as PersonaSpace

PUBLIC = {
    "Ablate": "personaspace.model.interventions",
    "Add": "personaspace.model.interventions",
    "Cap": "personaspace.model.interventions",
    "Catalog": "personaspace.catalog",
    "Decaying": "personaspace.model.interventions",
    "Design": "personaspace.engines.prompts",
    "Engine": "personaspace.engines.protocol",
    "Mirror": "personaspace.model.interventions",
    "PersonaSpace": "personaspace.space",
    "PersonaSpaceError": "personaspace.errors",
    "Prompt": "personaspace.engines.prompts",
    "Response": "personaspace.engines.protocol",
    "Sampling": "personaspace.engines.prompts",
    "SetTo": "personaspace.model.interventions",
    "Span": "personaspace.engines.chat",
    "Token": "personaspace.engines.protocol",
    "Turn": "personaspace.engines.protocol",
    "WatchCallback": "personaspace.experiments.watch.callback",
    "__version__": "personaspace._version",
    "attach": "personaspace.model.attach",
    "calibrate": "personaspace.api",
    "compare": "personaspace.api",
    "experiment": "personaspace.api",
    "judge": "personaspace.api",
    "load_catalog": "personaspace.catalog",
    "load_engine": "personaspace.engines.registry",
    "map": "personaspace.api",
    "project": "personaspace.api",
    "watch": "personaspace.api",
    "write_report": "personaspace.report.map",
}
"""What a user needs, and where it is."""

__all__ = list(PUBLIC)
__getattr__, __dir__ = lazy_names(__name__, PUBLIC)
