"""The loop: activations in, a dictionary out.

1. Before the first step: the scale, the variance and the bias come from a sample of the activations.
2. A batch from the ring, a step (stepping.py), now and then a report, an evaluation, a checkpoint.
3. After the last step: scaling undone, thresholds calibrated and features measured on activations kept back for that.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from hfsae.data.ring import ShuffleRing
from hfsae.dictionary import SAE
from hfsae.errors import HfsaeWarning, TrainingError
from hfsae.sae.config import SAEConfig
from hfsae.train.calibration import Scales, measure, unshrunk
from hfsae.train.callbacks import Callback, Figures
from hfsae.train.checkpoints import Checkpoints
from hfsae.train.config import TrainConfig
from hfsae.train.initial import initialise, scale_of
from hfsae.train.memory import memory_explained
from hfsae.train.recipe import Shape, Terms
from hfsae.train.resume import restore, run_state
from hfsae.train.signals import StopRequest
from hfsae.train.splicing import SpliceProbe
from hfsae.train.splitting import two_heaps
from hfsae.train.stepping import Stepper

_SAMPLE = 16_384
_FIGURES = 100


def kept_back(config: TrainConfig) -> int:
    """Return how many activations are kept for calibration and measurement after the last step."""
    return min(max(config.tokens // 20, 8192), 2**17)


class Trainer:
    """A run of training.

    Args:
        ring: Where batches come from; it should hold `kept_back` rows more than the run trains on.
        config: How to train.
        place: What the dictionary will be: its config with widths, place and policy.
        callbacks: Told of the run.
        checkpoints: Where to save, and to go on from what is there; None: nothing is saved.
        init_from: A dictionary to begin from, of the same widths.
        device: Where to train; None: where the activations are.
        probe: Evaluates the dictionary now and then; its figures are reported.
    """

    def __init__(  # noqa: PLR0913 - what a run is made of
        self,
        ring: ShuffleRing,
        config: TrainConfig,
        place: SAEConfig,
        *,
        callbacks: Sequence[Callback] = (),
        checkpoints: Checkpoints | None = None,
        init_from: SAE | None = None,
        device: torch.device | str | None = None,
        probe: SpliceProbe | None = None,
    ) -> None:
        self.ring, self.config, self.place, self.callbacks = ring, config, place, list(callbacks)
        shape = Shape(place.d_in, place.d_sae, place.d_write, place.is_transcoder, place.skip)
        self.stepper = Stepper(shape, config)
        self.scales = Scales(1.0, 1.0)
        self.tokens = 0
        self._probe = probe
        self.checkpoints, self._init_from, self._device = checkpoints, init_from, device
        self._last_rows = torch.zeros(0, ring.rows.width)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.stepper.step

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.stepper.recipe.W_dec.device

    def run(self) -> SAE:
        """Train to the end and return the dictionary.

        Raises:
            TrainingError: when a loss is not finite, the data break off, memory runs out, or the folder holds another
                run.
            SystemExit: after SIGINT or SIGTERM, where there are checkpoints; one is saved first.
        """
        with ExitStack() as stack:
            request = StopRequest()
            if self.checkpoints is not None:
                request = stack.enter_context(self.checkpoints.held())
            self._start()
            for callback in self.callbacks:
                callback.on_start(self.config, self.tokens)
                stack.callback(callback.on_end)
            stack.enter_context(memory_explained(self.config, self.place.d_sae))
            while self.step < self.config.steps and self._advance():
                self._save_if_due(request)
            return self._finish()

    @torch.no_grad()
    def dictionary(self, rows: Tensor | None = None) -> SAE:
        """Return the dictionary as it is now, on activations as they are.

        Args:
            rows: Activations for calibration, those to read and those to reconstruct side by side; None: the next ones.
        """
        rows = self.ring.peek(_SAMPLE) if rows is None else rows
        x, y = self._split((rows if len(rows) else self._last_rows).to(self.device))
        x, y = x * self.scales.x, y * self.scales.y
        recipe = self.stepper.recipe
        if not self.stepper.settled:
            recipe = deepcopy(recipe)
            recipe.settle(x)
        tensors = recipe.tensors()
        if recipe.calibrated:
            tensors["threshold"] = recipe.threshold_now(x).expand(self.place.d_sae)
        if recipe.shrinks:
            unshrunk(tensors, x, y)
        sae = SAE(replace(self.place, training=self._provenance()))
        sae.load_state_dict(self.scales.undone(tensors))
        return sae.to(self.device).eval()

    def _start(self) -> None:
        """Begin anew, or where the last checkpoint stands."""
        sample = self.ring.peek(_SAMPLE)
        device = sample.device if self._device is None else torch.device(self._device)
        self.stepper.to(device)
        saved = self.checkpoints.load() if self.checkpoints is not None else None
        if saved is not None:
            restore(self, saved)
            return
        x, y = self._split(sample.to(device))
        self.scales = Scales(scale_of(x), scale_of(y))
        initialise(self.stepper.recipe, x * self.scales.x, y * self.scales.y)
        if self._init_from is not None:
            self.stepper.recipe.load(self.scales.applied(dict(self._init_from.float().state_dict())))

    def _advance(self) -> bool:
        """Do a step; False when the data have ended."""
        self._split_features()
        rows = self._next_rows()
        if not len(rows):
            warn(
                f"The data ended after {self.tokens} of {self.config.tokens} activations, with the learning rate still "
                f"high. Set tokens={self.tokens}, or give data that can be read again.",
                HfsaeWarning,
                stacklevel=4,
            )
            return False
        x, y = self._split(rows.to(self.device))
        self._last_rows = rows
        terms = self.stepper.update(x * self.scales.x, y * self.scales.y)
        self.tokens += len(rows)
        last = self.step == self.config.steps
        probed = self._probe is not None and (last or self.step % self._probe.every == 0)
        if probed or last or self.step % max(self.config.steps // _FIGURES, 1) == 0:
            self._report(terms, probed)
        return True

    def _split_features(self) -> None:
        """Split features that do the work of two, on what was trained on last: there errors have the least noise."""
        rows = self.ring.past(min(self.stepper.heap_sample, _SAMPLE))
        if len(rows):
            x, y = self._split(rows.to(self.device))
            self.stepper.split(two_heaps(self.dictionary(rows), x, y, seed=self.step))

    def _next_rows(self) -> Tensor:
        """Return a batch; where the data break off, save first."""
        try:
            return self.ring.take(min(self.config.batch, self.config.tokens - self.tokens))
        except TrainingError as error:
            if self.checkpoints is None or not self.step:
                raise
            self.checkpoints.save(run_state(self), self.step)
            raise TrainingError(
                f"{error} The run was saved at step {self.step} in {self.checkpoints.latest}. Call it again to go on."
            ) from error

    def _report(self, terms: Terms, probed: bool) -> None:
        losses = {name: float(loss.detach()) for name, loss in terms.losses.items()}
        if not all(map(math.isfinite, losses.values())):
            good = self.checkpoints.latest if self.checkpoints is not None else None
            raise TrainingError(
                f"The loss is {losses} after step {self.step} ({self.tokens} activations). It must be finite. "
                f"The last good checkpoint is {good}. Lower the learning rate, or look for outliers in the activations."
            )
        extra = {name: float(value) for name, value in terms.extra.items()}
        if probed and self._probe is not None:
            extra |= self._probe(self.dictionary())
        figures = Figures(
            step=self.step,
            tokens=self.tokens,
            losses=losses,
            l0=float(terms.l0),
            dead=len(self.stepper.dead.dead) / self.place.d_sae,
            learning_rate=self.stepper.rate,
            extra=extra,
        )
        for callback in self.callbacks:
            callback.on_figures(figures)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Cut rows into what is read and what is reconstructed."""
        d_in = self.place.d_in
        return (rows[:, :d_in], rows[:, d_in:]) if rows.shape[1] > d_in else (rows, rows)

    def _finish(self) -> SAE:
        held_out = self._unseen()
        # Where nothing was kept back, because the data ended, the last that was seen has to serve.
        first = next(held_out, self._last_rows)
        sae = self.dictionary(first)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in sae.state_dict().values()):
            raise TrainingError("The trained weights are not finite. They must be. Lower the learning rate.")
        sae.statistics = measure(sae, (self._split(rows.to(self.device))[0] for rows in chain([first], held_out)))
        return sae

    def _unseen(self) -> Iterator[Tensor]:
        """Yield what was kept back."""
        while len(rows := self.ring.take(_SAMPLE)):
            yield rows

    def _save_if_due(self, request: StopRequest) -> None:
        if self.checkpoints is not None:
            last = self.step == self.config.steps
            self.checkpoints.save_if_due(lambda: run_state(self), self.step, last, request)

    def _provenance(self) -> dict[str, Any]:
        return {**self.ring.rows.describe(), "tokens": self.tokens, "steps": self.step, "config": self.config.to_dict()}
