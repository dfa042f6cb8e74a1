"""What every recipe of training has: parameters, the terms of a batch, and the way to a finished dictionary.

A recipe works on scaled activations (mean squared norm 1) and minimises

    FVU of the batch + what the architecture adds + what dead features are for (dead_features.py)

Whatever the architecture, features are found by TopK codes: there each token has its k, so that none is starved by
others or by a sparsity loss, and a step is cheap. Then tokens compete for the k of all: what only filled up the k of
tokens with little to say is given up. After that share of the run (`start`) the recipe settles: it takes over its own
codes, with the threshold and the coefficient at which as many fire as before.

`tensors` gives the weights of the dictionary it has become; calibration.py undoes the scaling. The recipes themselves,
one for each architecture, are in recipes.py.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hfsae.errors import InvalidValue, did_you_mean
from hfsae.sae import losses
from hfsae.sae.coding import Codes
from hfsae.sae.kernels import batch_topk_scan, gather_decode, preactivations_at, products_at, topk_scan
from hfsae.train.calibration import threshold_for
from hfsae.train.config import TrainConfig

_COMPETE = 0.3, 0.6
"""Between these shares of the run, codes are those of `Recipe.competing`."""
_SPARE = 4
"""Candidates in a bf16 shortlist beyond those wanted: one in so many, and at least so many."""
_WORTH_BF16 = 2**18
"""Encoder weights from which on a scan in bf16 pays."""
_SEED_OFFSET = 5_811_737
"""Added to the seed of the weights: a synthetic world drawn from the same small seed would hand them its truth."""


@dataclass(frozen=True)
class Shape:
    """What a dictionary in training reads and writes."""

    d_in: int
    """Width of x."""
    d_sae: int
    """Number of features."""
    d_out: int
    """Width of what is reconstructed."""
    transcodes: bool = False
    """Whether that is something else than x."""
    skip: bool = False
    """Whether a linear path goes around the features."""


@dataclass
class Terms:
    """What a batch gave: the losses by name, already weighted, and what is known of the codes."""

    losses: dict[str, Tensor]
    """Their sum is minimised."""
    counts: Int[Tensor, " d_sae"]
    """On how many tokens each feature fired."""
    error: Float[Tensor, "batch d_out"]
    """What was left over, without a gradient."""
    n_tokens: int
    """Tokens in the batch."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Further figures to show."""

    @property
    def loss(self) -> Tensor:
        """The sum of the losses."""
        return torch.stack(list(self.losses.values())).sum()

    @property
    def l0(self) -> Tensor:
        """Features that fired per token."""
        return self.counts.sum() / self.n_tokens


@dataclass
class Moment:
    """Where in the run a step stands, and what may change from step to step."""

    progress: float = 0.0
    """Share of the steps that are done."""
    coefficient: float | Tensor = 0.0
    """Of the sparsity loss, where a controller holds L0."""


class Recipe(nn.Module):
    """Parameters every architecture has, and the sparse route through them.

    Args:
        shape: Widths, and whether it transcodes.
        config: k, the seed and the recipe's own settings.
    """

    settings: ClassVar[dict[str, Any]] = {}
    """What `TrainConfig.recipe` may set, with the defaults."""
    start: ClassVar[float] = 1.0
    """Default of the setting "start": the share of the run after which the codes are its own."""
    controlled: ClassVar[bool] = False
    """Whether L0 is held by a controller on a coefficient."""
    calibrated: ClassVar[bool] = False
    """Whether the threshold is found after training, as the one that holds L0 on fresh activations."""
    shrinks: ClassVar[bool] = False
    """Whether its sparsity loss makes values too small; they are scaled up after training."""
    more: ClassVar[tuple[str, ...]] = ()
    """Parameters ``[d_sae]`` of this architecture alone."""

    variance: Tensor

    def __init__(self, shape: Shape, config: TrainConfig) -> None:
        super().__init__()
        self.shape, self.k, self.whole_k = shape, config.l0, config.whole_k
        self.options = chosen_options(type(self), config)
        generator = torch.Generator().manual_seed(config.seed + _SEED_OFFSET)
        self.W_dec = nn.Parameter(_unit_rows(shape.d_sae, shape.d_out, generator))
        same = shape.d_in == shape.d_out
        encoder = self.W_dec.detach().clone() if same else _unit_rows(shape.d_sae, shape.d_in, generator)
        self.W_enc = nn.Parameter(encoder)
        self.b_enc = nn.Parameter(torch.zeros(shape.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(shape.d_out))
        self.b_pre = nn.Parameter(torch.zeros(shape.d_in)) if shape.transcodes else None
        self.W_skip = nn.Parameter(torch.zeros(shape.d_out, shape.d_in)) if shape.skip else None
        self.register_buffer("variance", torch.tensor(1.0))

    def of_features(self) -> list[nn.Parameter]:
        """Return the parameters that hold a row, or a number, for each feature."""
        return [getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", *self.more)]

    @property
    def centre(self) -> nn.Parameter:
        """What the encoder subtracts: b_dec where it writes what it reads, else a bias of its own."""
        return self.b_dec if self.b_pre is None else self.b_pre

    def centred(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """Return x less what the encoder subtracts."""
        return x - self.centre

    def strongest(self, x: Float[Tensor, "batch d_in"], k: int) -> Codes:
        """Return the k largest pre-activations of each token, 0 where they are not above 0, and their features.

        On CPUs with bf16 units a scan in bf16 makes a shortlist, which is scored and cut in fp32: half the time.
        """
        with torch.no_grad():
            centred, spared = self.centred(x), _scans_in_bf16(self.W_enc)
            slots = min(_with_spare(k), self.shape.d_sae) if spared else k
            values, indices = topk_scan(*self._to_scan(centred), slots, ordered=False)
            if spared:
                starts = torch.arange(0, len(x) * slots + 1, slots)
                z = products_at(centred, self.W_enc, indices.flatten(), starts).view(-1, slots) + self.b_enc[indices]
                values, places = z.relu().topk(k, dim=1, sorted=False)
                indices = indices.gather(1, places)
        return Codes(self._selected(x, values, indices), indices, None)

    def competing(self, x: Float[Tensor, "batch d_in"]) -> Codes:
        """Return the largest pre-activations of the whole batch, k a token on average, and their features."""
        kept = min(round(self.k * len(x)), len(x) * self.shape.d_sae)
        with torch.no_grad():
            centred, spared = self.centred(x), _scans_in_bf16(self.W_enc)
            wanted = _with_spare(kept) if spared else kept
            values, indices, tokens = batch_topk_scan(*self._to_scan(centred), wanted)
            if spared:
                z = products_at(centred, self.W_enc, indices, _starts(tokens, len(x)))
                values = z.add_(self.b_enc[indices]).relu_()
                places = values.topk(min(kept, len(values)), sorted=False).indices.sort().values
                values, indices, tokens = values[places], indices[places], tokens[places]
            offsets = _starts(tokens, len(x))
        return Codes(self._selected(x, values, indices, offsets), indices, offsets)

    def _selected(self, x: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Return the values as pre-activations that weights learn from."""
        return preactivations_at(x, self.W_enc, self.b_enc, values, indices, offsets, self.centre)

    def _to_scan(self, centred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what pre-activations are made of, in bf16 where that is faster."""
        if _scans_in_bf16(self.W_enc):
            return centred.bfloat16(), self.W_enc.bfloat16(), self.b_enc.bfloat16()
        return centred, self.W_enc, self.b_enc

    def base(self, x: Float[Tensor, "batch d_in"]) -> Tensor:
        """Return the part of the reconstruction that no feature makes: the bias, and the skip path."""
        return self.b_dec if self.W_skip is None else self.b_dec + functional.linear(x, self.W_skip)

    def forward(self, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], moment: Moment) -> Terms:
        """Return the losses of a batch: x is encoded, y reconstructed (the same tensor unless it transcodes)."""
        if moment.progress >= self.options["start"]:
            return self.own_terms(x, y, moment)
        compete = _COMPETE[0] <= moment.progress < _COMPETE[1]
        return self.sparse_terms(self.competing(x) if compete else self.strongest(x, self.whole_k), x, y)

    def own_terms(self, x: Tensor, y: Tensor, moment: Moment) -> Terms:
        """Return the losses of a batch by the architecture's own codes."""
        return self.sparse_terms(self.own_codes(x), x, y)

    def own_codes(self, x: Tensor) -> Codes:
        """Return the architecture's own codes, where they are sparse."""
        raise NotImplementedError

    def threshold_now(self, x: Tensor) -> Tensor:
        """Return the threshold above which as many features fire on a batch as are wanted."""
        return threshold_for(Recipe.tensors(self), x, self.k)

    @torch.no_grad()
    def settle(self, x: Float[Tensor, "batch d_in"]) -> float:
        """Begin with codes of its own; return the sparsity coefficient under which they stay as sparse as they are."""
        return 0.0

    def __call__(self, x: Tensor, y: Tensor, moment: Moment) -> Terms:
        """Run `forward`."""
        terms: Terms = super().__call__(x, y, moment)
        return terms

    @torch.no_grad()
    def constrain(self, moment: Moment) -> None:
        """Bring the weights back to where they are allowed, after each step: decoder rows of length 1."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-8))

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Begin from a dictionary's weights, on scaled activations."""
        for name, tensor in tensors.items():
            parameter = getattr(self, name, None)
            if parameter is not None:
                parameter.copy_(tensor)

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """Return the dictionary's weights, decoder rows of length 1, still on scaled activations."""
        named = {name: getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "b_pre", "W_skip")}
        return {name: tensor.detach().clone() for name, tensor in named.items() if tensor is not None}

    def sparse_terms(self, codes: Codes, x: Tensor, y: Tensor) -> Terms:
        """Return the terms of sparse codes; what has the value 0 did not fire."""
        x_hat = gather_decode(codes.values, codes.rows, self.W_dec, None, codes.offsets).add_(self.base(x))
        counts = _fired_counts(codes, self.shape.d_sae)
        fvu, error = losses.compared(x_hat, y, self.variance)
        return Terms({"fvu": fvu}, counts, error, len(x))

    def dense_terms(self, f: Float[Tensor, "batch d_sae"], x: Tensor, y: Tensor) -> Terms:
        """Return the terms of dense codes: where too many features fire for the sparse route to pay."""
        x_hat = f @ self.W_dec + self.base(x)
        fvu, error = losses.compared(x_hat, y, self.variance)
        return Terms({"fvu": fvu}, (f.detach() > 0).sum(0), error, len(x))


def chosen_options(recipe: type[Recipe], config: TrainConfig) -> dict[str, Any]:
    """Return the recipe's settings with those of the config in place of the defaults.

    Raises: InvalidValue: for a setting that the recipe does not have.
    """
    known = {"start": recipe.start, **recipe.settings}
    for name in config.recipe:
        if name not in known:
            raise InvalidValue(
                f"{config.architecture!r} has no setting {name!r} in its recipe.{did_you_mean(name, known)}"
            )
    return {**known, **config.recipe}


def _scans_in_bf16(W_enc: Tensor) -> bool:
    # What the processor says, not a timing: a run that goes on after a crash has to take the same route.
    capable = W_enc.device.type == "cpu" and _has_bf16_units()
    return capable and W_enc.numel() >= _WORTH_BF16


@cache
def _has_bf16_units() -> bool:
    # Not public in torch up to 2.13; without it, no processor is taken for capable.
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def _unit_rows(count: int, width: int, generator: torch.Generator) -> Tensor:
    return functional.normalize(torch.randn(count, width, generator=generator), dim=1)


def _with_spare(wanted: int) -> int:
    return wanted + max(wanted // _SPARE, _SPARE)


def _starts(tokens: Tensor, count: int) -> Tensor:
    """Return where the entries of each token begin."""
    return torch.searchsorted(tokens, torch.arange(count + 1, device=tokens.device))


def _fired_counts(codes: Codes, d_sae: int) -> Tensor:
    fired = (codes.values.detach() > 0).flatten()
    return codes.rows.new_zeros(d_sae).index_add_(0, codes.rows.flatten(), fired.to(codes.rows.dtype))
