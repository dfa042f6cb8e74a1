"""The loop: activations in, a dictionary out.

1. Before the first step: the scale, the variance and the bias come from a sample of the activations.
2. A step: a batch from the ring, the recipe's losses, the dead features' loss, gradients clipped, Adam, decoder rows back to
   length 1, clocks. Early on dead features start again. Nothing waits for the device but every tenth step.
3. After the last step: scaling undone, thresholds calibrated and features measured on activations kept back for that.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from hfsae.data.ring import ShuffleRing
from hfsae.dictionary import SAE
from hfsae.errors import HfsaeWarning, TrainingError
from hfsae.sae.config import SAEConfig
from hfsae.train.calibration import Scales, measure
from hfsae.train.callbacks import Callback, Figures
from hfsae.train.config import TrainConfig
from hfsae.train.dead_features import DeadFeatures
from hfsae.train.initial import initialise, scale_of
from hfsae.train.recipes import RECIPES, Moment, Shape, Terms
from hfsae.train.schedules import learning_rate_factor

_SAMPLE = 16_384
_LOOK_EVERY = 10
_RESEEDS = 100
_FIGURES = 100
_MEASURE_BATCH = 2048


def kept_back(config: TrainConfig) -> int:
    """Return how many activations are kept for calibration and measurement after the last step."""
    return min(max(config.tokens // 20, 8192), 2**17)


class Trainer:
    """A run of training.

    Args:
        ring: Where batches come from; it should hold `kept_back` rows more than the run trains on.
        config: How to train.
        place: What the dictionary will be: its config with widths, place and policy; k and training are filled in.
        callbacks: Told of the run.
        device: Where to train; None: where the activations are.
    """

    def __init__(
        self,
        ring: ShuffleRing,
        config: TrainConfig,
        place: SAEConfig,
        *,
        callbacks: Sequence[Callback] = (),
        device: torch.device | str | None = None,
    ) -> None:
        self.ring, self.config, self.place, self.callbacks = ring, config, place, list(callbacks)
        shape = Shape(place.d_in, place.d_sae, place.d_write, place.is_transcoder, place.skip)
        self.recipe = RECIPES[config.architecture](shape, config)
        self.dead = DeadFeatures(config.dead, place.d_sae, config.l0)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.scales = Scales(1.0, 1.0)
        self.step = self.tokens = 0
        self._dead_ids: Tensor | None = None
        self._device = device
        self.optimizer: torch.optim.Optimizer

    def run(self) -> SAE:
        """Train to the end and return the dictionary.

        Raises: TrainingError: when a loss is not finite.
        """
        self._start()
        for callback in self.callbacks:
            callback.on_start(self.config, self.tokens)
        try:
            while self.step < self.config.steps and self._advance():
                pass
        finally:
            for callback in self.callbacks:
                callback.on_end()
        return self._finish()

    @torch.no_grad()
    def dictionary(self) -> SAE:
        """Return the dictionary as it is now, on activations as they are."""
        tensors = self.scales.undone(self.recipe.tensors())
        k = max(round(self.config.l0), 1)
        sae = SAE(replace(self.place, k=k, training=self._provenance()))
        sae.load_state_dict(tensors)
        return sae.to(self.recipe.W_dec.device).eval()

    def _start(self) -> None:
        sample = self.ring.peek(_SAMPLE)
        device = sample.device if self._device is None else torch.device(self._device)
        self.recipe.to(device)
        self.dead.to(device)
        self.optimizer = torch.optim.Adam(
            self.recipe.parameters(), lr=0.0, betas=self.config.optimizer.betas, fused=True
        )
        x, y = self._split(sample.to(device))
        self.scales = Scales(scale_of(x), scale_of(y))
        initialise(self.recipe, x * self.scales.x, y * self.scales.y)

    def _advance(self) -> bool:
        """Do a step; False when the data have ended."""
        rows = self.ring.take(min(self.config.batch, self.config.tokens - self.tokens))
        if not len(rows):
            warn(
                f"The data ended after {self.tokens} of {self.config.tokens} activations, before the learning rate fell. "
                f"Set tokens={self.tokens}, or give data that can be read again.",
                HfsaeWarning,
                stacklevel=4,
            )
            return False
        x, y = self._split(rows.to(self.recipe.W_dec.device))
        terms = self._update(x * self.scales.x, y * self.scales.y)
        self.tokens += len(rows)
        self.step += 1
        if self.step % max(self.config.steps // _FIGURES, 1) == 0 or self.step == self.config.steps:
            self._report(terms)
        return True

    def _update(self, x: Tensor, y: Tensor) -> Terms:
        moment = Moment(self.step / self.config.steps)
        terms = self.recipe(x, y, moment)
        self._revive(terms, x, moment)
        self.optimizer.zero_grad()
        terms.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.recipe.parameters(), self.config.optimizer.clip, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self.recipe.constrain()
        self.dead.tick(terms)
        if moment.progress < self.config.dead.reseed_until and self._due(max(self.config.steps // _RESEEDS, 1)):
            self.dead.reseed(self.recipe, self.optimizer, terms.error, self.generator)
        return terms

    def _revive(self, terms: Terms, x: Tensor, moment: Moment) -> None:
        """Add the dead features' loss once new starts are over."""
        if moment.progress < self.config.dead.reseed_until or not self.config.dead.aux_coefficient:
            return
        if self._dead_ids is None or self._due(_LOOK_EVERY):
            self._dead_ids = self.dead.dead
        if len(self._dead_ids):
            terms.losses["aux"] = self.dead.aux_loss(self.recipe, x, terms.error, self._dead_ids)

    def _due(self, every: int) -> bool:
        return self.step % every == every - 1

    def _rate(self) -> float:
        schedule = self.config.optimizer
        factor = learning_rate_factor(self.step, self.config.steps, schedule.warmup, schedule.decay)
        return self.config.rate(self.place.d_in) * factor

    def _report(self, terms: Terms) -> None:
        losses = {name: float(loss.detach()) for name, loss in terms.losses.items()}
        if not all(map(math.isfinite, losses.values())):
            raise TrainingError(
                f"The loss is {losses} after step {self.step} ({self.tokens} activations). It must be finite. "
                "Lower the learning rate, or look for outliers in the activations."
            )
        figures = Figures(
            step=self.step,
            tokens=self.tokens,
            losses=losses,
            l0=float(terms.l0),
            dead=len(self.dead.dead) / self.place.d_sae,
            learning_rate=self._rate(),
            extra={name: float(value) for name, value in terms.extra.items()},
        )
        for callback in self.callbacks:
            callback.on_figures(figures)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Cut rows into what is read and what is reconstructed."""
        d_in = self.place.d_in
        return (rows[:, :d_in], rows[:, d_in:]) if rows.shape[1] > d_in else (rows, rows)

    def _finish(self) -> SAE:
        sae = self.dictionary()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in sae.state_dict().values()):
            raise TrainingError("The trained weights are not finite. Lower the learning rate.")
        sae.statistics = measure(sae, self._unseen())
        return sae

    def _unseen(self) -> Iterator[Tensor]:
        """Yield what was kept back, or, where the data were all used, once more what comes first."""
        while len(rows := self.ring.take(_MEASURE_BATCH)):
            yield self._split(rows.to(self.recipe.W_dec.device))[0]

    def _provenance(self) -> dict[str, Any]:
        return {**self.ring.rows.describe(), "tokens": self.tokens, "steps": self.step, "config": self.config.to_dict()}
