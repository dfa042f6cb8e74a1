"""One step of training: losses, dead features' loss, clipped gradients, Adam, decoder rows back to length 1, clocks.

Early on dead features start again. At the end of its start as TopK the recipe settles, with a coefficient that a
controller moves from then on. Nothing waits for the device but every tenth step.
"""

import math

import torch
from torch import Tensor

from hfsae.train.config import TrainConfig
from hfsae.train.dead_features import DeadFeatures
from hfsae.train.recipe import Moment, Shape, Terms
from hfsae.train.recipes import RECIPES
from hfsae.train.schedules import controlled, learning_rate_factor
from hfsae.train.splitting import Heaps, split

_LOOK_EVERY = 10
_RESEEDS = 100
_SPLIT_FROM = 0.1
_FIRINGS = 80
"""How often a feature should fire, on average, where features that do the work of two are looked for."""
_GAIN = 0.02


class Stepper:
    """Weights, and what moves them.

    Args:
        shape: Widths, and whether it transcodes.
        config: How to train.
    """

    def __init__(self, shape: Shape, config: TrainConfig) -> None:
        self.config = config
        self.recipe = RECIPES[config.architecture](shape, config)
        self.dead = DeadFeatures(config.dead, shape.d_sae, config.l0)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.coefficient = torch.tensor(0.0)
        self.dead_ids: Tensor | None = None
        self.step = 0
        self.optimizer = torch.optim.Adam(self.recipe.parameters(), lr=0.0, betas=config.optimizer.betas, fused=True)
        self._settles_at: int = math.ceil(self.recipe.options["start"] * config.steps)

    @property
    def settled(self) -> bool:
        """Whether the recipe has codes of its own by now."""
        return self.step > self._settles_at

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        schedule = self.config.optimizer
        factor = learning_rate_factor(self.step, self.config.steps, schedule.warmup, schedule.decay)
        return self.config.rate(self.recipe.shape.d_in) * factor

    def to(self, device: torch.device) -> None:
        """Move all to a device."""
        for module in (self.recipe, self.dead):
            module.to(device)
        self.coefficient = self.coefficient.to(device)

    @property
    def heap_sample(self) -> int:
        """Activations on which to look for features that do the work of two before the next step; 0: do not."""
        progress, every = self.step / self.config.steps, max(self.config.steps // _RESEEDS, 1)
        wanted = _SPLIT_FROM <= progress < self.config.dead.split_until and self._due(every)
        if not wanted or not len(self.dead.dead):
            return 0
        return round(_FIRINGS * self.recipe.shape.d_sae / self.config.l0)

    def split(self, heaps: Heaps) -> None:
        """Let dead features take a half of those that do the work of two."""
        taken = split(self.recipe, self.optimizer, heaps, self.dead.dead)
        self.dead.idle[taken] = 0

    def update(self, x: Tensor, y: Tensor) -> Terms:
        """Do a step on scaled activations: x is encoded, y reconstructed."""
        if self.step == self._settles_at:
            self.coefficient.fill_(self.recipe.settle(x))
        moment = Moment(self.step / self.config.steps, self.coefficient)
        terms = self.recipe(x, y, moment)
        self._revive(terms, x, moment)
        self.optimizer.zero_grad()
        terms.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.recipe.parameters(), self.config.optimizer.clip, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.step()
        self.recipe.constrain(moment)
        self.dead.tick(terms)
        if self.recipe.controlled:
            self.coefficient = controlled(self.coefficient, terms.l0, self.config.l0, _GAIN)
        if moment.progress < self.config.dead.reseed_until and self._due(max(self.config.steps // _RESEEDS, 1)):
            self.dead.reseed(self.recipe, self.optimizer, terms.error, self.generator)
        self.step += 1
        return terms

    def _revive(self, terms: Terms, x: Tensor, moment: Moment) -> None:
        """Add the dead features' loss once new starts are over."""
        if moment.progress < self.config.dead.reseed_until or not self.config.dead.aux_coefficient:
            return
        if self.dead_ids is None or self._due(_LOOK_EVERY):
            self.dead_ids = self.dead.dead
        if len(self.dead_ids):
            terms.losses["aux"] = self.dead.aux_loss(self.recipe, x, terms.error, self.dead_ids)

    def _due(self, every: int) -> bool:
        return self.step % every == every - 1
