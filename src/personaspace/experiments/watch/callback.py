"""Watches a model while it is trained: every so many steps a few prompts are read; what moved goes into the trainer's logs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from personaspace.catalog import load_catalog
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import UsageError
from personaspace.experiments.watch.findings import DIMENSIONS, EFFECT, Change, changes
from personaspace.experiments.watch.readings import looks_of, read_model, trait_vectors, watched_prompts
from personaspace.mapping.options import named
from personaspace.space import PersonaSpace
from personaspace.space.directions import AXIS
from personaspace.watcher import Watcher

PROMPTS, ROLES, TOP = 24, "8", 3


class WatchCallback(TrainerCallback):  # type: ignore[misc]
    """Logs how far the default has moved since training began: along the axis, and along the traits and roles on which most of
    the move lies, as `persona/axis`, `persona/role:pirate`, … in deviations of the default; `persona/moved` counts the
    directions that count. What was logged once is logged from then on.

    trainer: whose model it is, and whose logs it writes to; space: of that model as it was before training, by its folder or
    name; every: steps between readings; traits: as `ps.watch` has them, those of the space unless given ("24": read once, when
    training begins). prompts, roles, effect, seed: as there. The trainer needs its tokenizer (`processing_class`). Raises
    `UsageError`, `SpaceError` for a model of another shape.

    >>> trainer.add_callback(ps.WatchCallback(trainer, "runs/base", every=50))
    """

    def __init__(
        self,
        trainer: Trainer,
        space: PersonaSpace | str | Path,
        *,
        every: int = 50,
        traits: str | None = None,
        prompts: int = PROMPTS,
        roles: str = ROLES,
        top: int = TOP,
        effect: float = EFFECT,
        seed: int = 0,
        catalog: str | Path | None = None,
    ) -> None:
        if every < 1:
            raise UsageError(f"every={every}: expected 1 or more steps")
        if trainer.processing_class is None:
            raise UsageError("the trainer has no tokenizer (processing_class), with which prompts are written")
        self.trainer, self.every, self.top, self.effect, self.seed = trainer, every, top, effect, seed
        self.space = space if isinstance(space, PersonaSpace) else PersonaSpace.load(space)
        self.catalog = named(load_catalog(catalog), str(self.space.meta["model"]["id"]))
        # Nothing but the axis and roles where the space holds no traits: they would take minutes.
        self.traits = traits or (None if self.space.traits else "none")
        self.work = watched_prompts(self.catalog, roles, prompts, seed)
        self.followed = [AXIS]
        self.change: Change | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Reads the model as it is before the first step."""
        if not state.is_world_process_zero:
            return
        model = self.trainer.accelerator.unwrap_model(model)
        layered = model.get_base_model() if hasattr(model, "get_base_model") else model
        with _resting(model):
            self.engine = TransformersEngine(layered, self.trainer.processing_class, id="the model in training")
            self.space.check_model(self.engine.info)
            vectors = trait_vectors(self.engine, self.space, self.catalog, self.traits, 4, self.seed, Watcher())
            self.looks = looks_of(self.space, vectors)
            self.before = read_model(self.engine, self.work, self.space.layer, Watcher())

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Reads it again where it is time for that, and logs what moved."""
        if not state.is_world_process_zero or state.global_step % self.every:
            return
        with _resting(model):
            reading = read_model(self.engine, self.work, self.space.layer, Watcher())
        components = self.space.components_at()[0][:DIMENSIONS].double().numpy()
        centre = self.space.centred()[1].double().numpy()
        (change,) = changes(self.before, {"now": reading}, {}, self.looks, components, centre, self.effect)
        for look in sorted(change.looks[1:], key=lambda look: -abs(look.cosine))[: self.top]:
            if look.name not in self.followed:
                self.followed.append(look.name)
        figures = {look.name: look.shift.value for look in change.looks if look.name in self.followed}
        self.change = change
        counted = {"moved": float(sum(look.moved for look in change.looks)), "length": change.length}
        self.trainer.log({f"persona/{name}": value for name, value in {**figures, **counted}.items()})


@contextmanager
def _resting(model: Any) -> Iterator[None]:
    """While it lasts, no part of the model is in training; afterwards those are that were."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
