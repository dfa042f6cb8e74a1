"""One recipe for each architecture: how codes are made in training, and what the loss adds. The table is `RECIPES`."""

from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hfsae.errors import InvalidValue
from hfsae.sae import losses
from hfsae.sae.architectures import ARCHITECTURES
from hfsae.sae.coding import SEQUENTIAL, Codes
from hfsae.sae.kernels import gather_decode
from hfsae.sae.pursuit import picks
from hfsae.train.calibration import nth_largest
from hfsae.train.config import TrainConfig
from hfsae.train.recipe import Moment, Recipe, Shape, Terms

_PURSUED = 2048
"""Tokens on which matching pursuit's threshold is found: there it makes all its picks, more than ever else."""


class TopK(Recipe):
    """The k largest pre-activations of each token.

    Source: Gao et al. 2024, arXiv:2406.04093.
    """


class BatchTopK(Recipe):
    """The largest pre-activations of the whole batch, k a token on average.

    From the start it gets stuck for good with half of its features.

    Source: Bussmann et al. 2024, arXiv:2412.06410. The start as TopK is ours.
    """

    start = 0.3
    calibrated = True

    def own_codes(self, x: Tensor) -> Codes:
        """Return the largest of the batch."""
        return self.competing(x)


class Matryoshka(BatchTopK):
    """BatchTopK whose first features must do alone, and with the next ones, and so on: the mean FVU of all prefixes.

    Source: Bussmann et al. 2025, arXiv:2503.17547.
    """

    settings: ClassVar[dict[str, Any]] = {"group_sizes": None}

    def __init__(self, shape: Shape, config: TrainConfig) -> None:
        super().__init__(shape, config)
        self.group_sizes = tuple(self.options["group_sizes"] or default_groups(shape.d_sae))
        if sum(self.group_sizes) != shape.d_sae or min(self.group_sizes) < 1:
            raise InvalidValue(
                f"group_sizes={self.group_sizes} do not fit. They must be positive and sum to d_sae={shape.d_sae}."
            )

    def sparse_terms(self, codes: Codes, x: Tensor, y: Tensor) -> Terms:
        """Return the terms of codes, each prefix a reconstruction of its own."""
        terms = super().sparse_terms(codes, x, y)
        prefixes = []
        for stop in list(accumulate(self.group_sizes))[:-1]:
            values = codes.values * (codes.rows < stop)
            x_hat = gather_decode(values, codes.rows, self.W_dec, None, codes.offsets) + self.base(x)
            prefixes.append(losses.reconstruction(x_hat, y, self.variance))
        share = 1 / len(self.group_sizes)
        terms.extra["fvu_all"] = terms.losses["fvu"].detach()
        terms.losses = {"fvu": terms.losses["fvu"] * share}
        if prefixes:
            terms.losses["prefixes"] = torch.stack(prefixes).sum() * share
        return terms


class Sequential(Recipe):
    """Features chosen on what others left over, those above one threshold, which a controller holds where k fire."""

    start = 0.8
    controlled = True
    calibrated = True

    def __init__(self, shape: Shape, config: TrainConfig) -> None:
        super().__init__(shape, config)
        self._encode = SEQUENTIAL[config.architecture]
        self._most = min(config.whole_k * ARCHITECTURES[config.architecture].spare, shape.d_sae)

    def own_terms(self, x: Tensor, y: Tensor, moment: Moment) -> Terms:
        """Return the terms of a batch; the coefficient is the threshold."""
        return self.sparse_terms(self._codes(x, torch.as_tensor(moment.coefficient)), x, y)

    @torch.no_grad()
    def settle(self, x: Tensor) -> float:
        """Return the threshold to begin with."""
        return float(self.threshold_now(x))

    def threshold_now(self, x: Tensor) -> Tensor:
        """Return the threshold above which as many features fire on a batch as are wanted: an exact quantile."""
        return nth_largest(self._codes(x, torch.zeros(())).values, self.k * len(x))

    def _codes(self, x: Tensor, threshold: Tensor) -> Codes:
        return Codes(*self._encode(*self._given(x, threshold)))

    def _given(self, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, int, Tensor]:
        """Return what sequential encoders take."""
        floor = threshold.to(x).expand(self.shape.d_sae)
        return self.centred(x), self.W_enc, self.b_enc, self.W_dec, self._most, floor


class MatchingPursuit(Sequential):
    """Features picked one at a time, each on what the earlier ones left over.

    Source: Costa et al. 2025, arXiv:2506.03093. The start as TopK, which is many times as fast, and the threshold in
        place of a fixed number of picks are ours.
    """

    @torch.no_grad()
    def settle(self, x: Tensor) -> float:
        """Read along the directions that are written: what a pick takes off is then all there is of it."""
        self.W_enc.copy_(self.W_dec)
        self.b_enc.zero_()
        return super().settle(x)

    @torch.no_grad()
    def threshold_now(self, x: Tensor) -> Tensor:
        """Return the threshold; a pick counts while none before it was weaker, and once for each feature."""
        x = x[:_PURSUED]
        weakest = x.new_full((len(x),), torch.inf)
        seen = torch.zeros(len(x), self.shape.d_sae, dtype=torch.bool, device=x.device)
        counted = []
        for values, features, tokens in picks(*self._given(x, torch.zeros(()))):
            weakest[tokens] = torch.minimum(weakest[tokens], values)
            counted.append(weakest[tokens][~seen[tokens, features]])
            seen[tokens, features] = True
        return nth_largest(torch.cat(counted), self.k * len(x))


class RefinedTopK(Sequential):
    """TopK codes, weighed again by what they leave over.

    Source: ours, by Blumensath and Davies 2009, "Iterative hard thresholding for compressed sensing".
    """


class Standard(Recipe):
    """ReLU codes, each paid for by its length in the output; decoder rows are free.

    Source: Anthropic, Circuits Updates April 2024.
    """

    settings: ClassVar[dict[str, Any]] = {"unit_decoder": False}
    start = 0.6
    controlled = True
    shrinks = True

    def own_terms(self, x: Tensor, y: Tensor, moment: Moment) -> Terms:
        """Return the terms of a batch."""
        f = functional.linear(self.centred(x), self.W_enc, self.b_enc).relu()
        terms = self.dense_terms(f, x, y)
        terms.losses["l1"] = moment.coefficient * losses.l1(f, self.W_dec.norm(dim=1))
        return terms

    @torch.no_grad()
    def settle(self, x: Tensor) -> float:
        """Lower the biases by the threshold; at the optimum, L1 takes ``coefficient * variance / 2`` off each value."""
        threshold = self.threshold_now(x)
        self.b_enc.sub_(threshold)
        return float(2 * threshold / self.variance)

    @torch.no_grad()
    def constrain(self, moment: Moment) -> None:
        """Hold decoder rows to length 1 at first, and where asked for."""
        if self.options["unit_decoder"] or moment.progress < self.options["start"]:
            super().constrain(moment)

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, the lengths of decoder rows moved into the encoder."""
        tensors = super().tensors()
        norms = tensors["W_dec"].norm(dim=1).clamp(min=1e-8)
        return {
            **tensors,
            "W_dec": tensors["W_dec"] / norms[:, None],
            "W_enc": tensors["W_enc"] * norms[:, None],
            "b_enc": tensors["b_enc"] * norms,
        }


class Gated(Recipe):
    """A gate decides what fires, a rescaled copy of it how much; only the gate pays.

    Source: Rajamanoharan et al. 2024, arXiv:2404.16014.
    """

    start = 0.6
    controlled = True
    more = ("log_rescale", "b_mag")

    def __init__(self, shape: Shape, config: TrainConfig) -> None:
        super().__init__(shape, config)
        self.log_rescale = nn.Parameter(torch.zeros(shape.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(shape.d_sae))

    def own_terms(self, x: Tensor, y: Tensor, moment: Moment) -> Terms:
        """Return the terms of a batch."""
        product = functional.linear(self.centred(x), self.W_enc)
        gate = product + self.b_enc
        f = (product * self.log_rescale.exp() + self.b_mag).relu() * (gate.detach() > 0)
        terms = self.dense_terms(f, x, y)
        opened = gate.relu()
        # Detached: the frozen copy teaches the gate, and must not bend the decoder to it.
        frozen = opened @ self.W_dec.detach() + self.base(x).detach()
        terms.losses["gate"] = losses.reconstruction(frozen, y, self.variance)
        terms.losses["l1"] = moment.coefficient * losses.l1(opened, torch.ones_like(self.b_enc))
        return terms

    @torch.no_grad()
    def settle(self, x: Tensor) -> float:
        """Give the gate the threshold and the magnitudes the biases so far; the coefficient is that of L1."""
        threshold = self.threshold_now(x)
        self.b_mag.copy_(self.b_enc)
        self.b_enc.sub_(threshold)
        return float(2 * threshold / self.variance)

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """Return the weights with the gate folded: it is open where the magnitude exceeds a feature's threshold."""
        tensors, rescale = super().tensors(), self.log_rescale.exp()
        return {
            **tensors,
            "W_enc": tensors["W_enc"] * rescale[:, None],
            "b_enc": self.b_mag.detach().clone(),
            "threshold": self.b_mag - rescale * self.b_enc,
        }


class JumpReLU(Recipe):
    """Pre-activations above a threshold of each feature; what fires is counted, not weighed.

    ``loss="step"`` counts exactly, with a gradient for the thresholds alone; ``loss="tanh"`` counts smoothly.

    Source: Rajamanoharan et al. 2024, arXiv:2407.14435; Anthropic, Circuits Updates January 2025. The threshold
        itself is the parameter: its logarithm barely moves under Adam.
    """

    settings: ClassVar[dict[str, Any]] = {"loss": "step", "bandwidth": 0.05, "pull": 3e-6}
    start = 0.6
    controlled = True
    more = ("threshold",)

    def __init__(self, shape: Shape, config: TrainConfig) -> None:
        super().__init__(shape, config)
        if self.options["loss"] not in ("step", "tanh"):
            raise InvalidValue(f"loss={self.options['loss']!r} is unknown. It is 'step' or 'tanh'.")
        self.threshold = nn.Parameter(torch.zeros(shape.d_sae))

    def own_terms(self, x: Tensor, y: Tensor, moment: Moment) -> Terms:
        """Return the terms of a batch."""
        bandwidth, smooth = self.options["bandwidth"], self.options["loss"] == "tanh"
        z = functional.linear(self.centred(x), self.W_enc, self.b_enc).relu()
        f = losses.jumprelu(z, self.threshold, bandwidth, to_input=smooth)
        terms = self.dense_terms(f, x, y)
        norms = torch.ones_like(self.b_enc)
        count = losses.tanh_sparsity(f, norms) if smooth else losses.l0_step(z, self.threshold, bandwidth)
        terms.losses["l0"] = moment.coefficient * count
        if smooth:
            terms.losses["pull"] = self.options["pull"] * losses.low_preactivations(z, self.threshold, norms)
        return terms

    @torch.no_grad()
    def settle(self, x: Tensor) -> float:
        """Take over the threshold; firing with just that value saves its square of error: that is what firing costs."""
        threshold = self.threshold_now(x)
        self.threshold.fill_(threshold)
        return float(threshold.square() / self.variance)

    @torch.no_grad()
    def constrain(self, moment: Moment) -> None:
        """Hold decoder rows to length 1 and thresholds above 0."""
        super().constrain(moment)
        self.threshold.clamp_(min=0)

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and the thresholds."""
        return {**super().tensors(), "threshold": self.threshold.detach().clone()}


RECIPES: dict[str, type[Recipe]] = {
    "standard": Standard,
    "gated": Gated,
    "topk": TopK,
    "batchtopk": BatchTopK,
    "jumprelu": JumpReLU,
    "matryoshka": Matryoshka,
    "matching_pursuit": MatchingPursuit,
    "refined_topk": RefinedTopK,
}
"""Architecture to how it is trained. A new architecture is a class here, and a row in `ARCHITECTURES`."""


def default_groups(d_sae: int) -> tuple[int, ...]:
    """Return group sizes of a Matryoshka dictionary, such that its prefixes are a half, three quarters and all of it.

    A prefix much narrower than what there is to tell merges features that often fire together.
    """
    prefixes = [d_sae // 2, 3 * d_sae // 4, d_sae]
    sizes = [stop - start for start, stop in zip([0, *prefixes], prefixes, strict=False)]
    return tuple(size for size in sizes if size > 0)
