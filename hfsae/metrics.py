"""How good a reconstruction is and what it costs a model: functions of tensors, and sums that grow batch by batch.

Sums are float64. The variance of x is merged batch by batch (Chan et al.) rather than taken as E[x^2] - E[x]^2, which
one token of massive norm would cancel to noise.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hfsae.errors import InvalidValue

BINS_PER_OCTAVE = 4
"""Resolution of `Spread`."""
_OCTAVES = 60


def cross_entropy(logits: Float[Tensor, "*batch vocab"], targets: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return the cross-entropy of each prediction in nats, float32 at least.

    Args:
        logits: Raw scores of the next token.
        targets: The token that came, as an id below ``vocab``.
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return scores.logsumexp(-1) - scores.gather(-1, targets[..., None]).squeeze(-1)


def kl_divergence(
    logits: Float[Tensor, "*batch vocab"], other: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """Return KL(softmax(logits) || softmax(other)) of each prediction in nats, float32 at least.

    Example:
        >>> kl_divergence(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
        tensor(0.)
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_p, log_q = logits.log_softmax(-1, dtype=wide), other.log_softmax(-1, dtype=wide)
    # A token that the model rules out (-inf) has p log p = 0, where arithmetic gives NaN.
    difference = (log_p - log_q).masked_fill_(log_p == -torch.inf, 0.0)
    return log_p.exp_().mul_(difference).sum(-1)


def loss_recovered(clean: float, spliced: float, ablated: float) -> float:
    """Return which fraction of the loss that an ablation costs the dictionary wins back.

    (ablated - spliced) / (ablated - clean): 1 when splicing costs nothing, 0 when it is as bad as the ablation. It can
    leave 0..1, and says little where the ablation costs little: read it beside the three losses.

    Returns: A fraction; NaN where the ablation costs nothing at all.

    Example:
        >>> loss_recovered(clean=3.0, spliced=3.5, ablated=5.0)
        0.75
    """
    return _ratio(ablated - spliced, ablated - clean)


def fvu(x: Float[Tensor, "*batch d_in"], x_hat: Float[Tensor, "*batch d_in"]) -> float:
    """Return the fraction of variance unexplained, sum |x - x_hat|^2 / sum |x - mean x|^2 over all tokens given.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        >>> fvu(x, x), fvu(x, x.mean(0).expand(2, 2))
        (0.0, 1.0)
    """
    sums = ReconstructionSums(x.shape[-1])
    sums.add(x.reshape(-1, x.shape[-1]), x_hat.reshape(-1, x.shape[-1]))
    return sums.fvu


class ReconstructionSums:
    """What is summed over tokens to compare x with x_hat.

    Args: width: Size of an activation.
    """

    def __init__(self, width: int) -> None:
        self.tokens = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._deviation = 0.0  # sum |x - mean|^2
        self._error = 0.0  # sum |x - x_hat|^2
        self._cosine = 0.0
        self._norm = 0.0
        self._norm_hat = 0.0
        self._dot = 0.0  # sum <x, x_hat>
        self._square_hat = 0.0

    def add(self, x: Float[Tensor, "_ _"], x_hat: Float[Tensor, "_ _"]) -> None:
        """Count more tokens.

        Shape: x, x_hat: ``[tokens, d_in]``, any float dtype.
        Raises: InvalidValue: when the two differ in shape.
        """
        if x.shape != x_hat.shape or x.shape[-1] != len(self._mean):
            raise InvalidValue(
                f"x {list(x.shape)} and x_hat {list(x_hat.shape)} cannot be compared. "
                f"Both must be [tokens, {len(self._mean)}]."
            )
        if not len(x):
            return
        x, x_hat = _float64(x), _float64(x_hat)
        self._add_variance(x)
        dot, square_hat = (x * x_hat).sum(-1), x_hat.square().sum(-1)
        norm, norm_hat = x.norm(dim=-1), square_hat.sqrt()
        self._error += float((x - x_hat).square().sum())
        self._dot += float(dot.sum())
        self._square_hat += float(square_hat.sum())
        self._norm += float(norm.sum())
        self._norm_hat += float(norm_hat.sum())
        both = norm * norm_hat
        self._cosine += float((dot / both).masked_fill(both == 0, 0.0).sum())

    def _add_variance(self, x: Tensor) -> None:
        mean, tokens = x.mean(0), len(x)
        self._deviation += float((x - mean).square().sum())
        shift, total = mean.cpu() - self._mean, self.tokens + tokens
        self._deviation += float(shift.square().sum()) * self.tokens * tokens / total
        self._mean += shift * (tokens / total)
        self.tokens = total

    @property
    def mean(self) -> Float[Tensor, "d_in"]:
        """Mean of x over all tokens, float64 on the CPU."""
        return self._mean.clone()

    @property
    def mse(self) -> float:
        """Mean squared error per element."""
        return _ratio(self._error, self.tokens * len(self._mean))

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained, around the one mean of all tokens; NaN where x does not vary."""
        return _ratio(self._error, self._deviation)

    @property
    def variance(self) -> float:
        """Mean of |x - mean x|^2: the error that predicting the mean makes per token."""
        return _ratio(self._deviation, self.tokens)

    @property
    def cosine(self) -> float:
        """Mean cosine of x and x_hat; a token of which either is zero counts as 0."""
        return _ratio(self._cosine, self.tokens)

    @property
    def l2_ratio(self) -> float:
        """sum |x_hat| / sum |x|; below 1 where the dictionary shrinks."""
        return _ratio(self._norm_hat, self._norm)

    @property
    def relative_bias(self) -> float:
        """sum |x_hat|^2 / sum <x, x_hat>; 1 where no rescaling of x_hat would bring it closer to x."""
        return _ratio(self._square_hat, self._dot)


class FiringSums:
    """How often each feature fires.

    Args: d_sae: Number of features.
    """

    def __init__(self, d_sae: int) -> None:
        self.tokens = 0
        self._counts = torch.zeros(d_sae, dtype=torch.int64)
        self._by_number = torch.zeros(1, dtype=torch.int64)

    def add(self, token: Int[Tensor, "nnz"], feature: Int[Tensor, "nnz"], tokens: int) -> None:
        """Count more tokens, given for each firing on them which of them it was on and of which feature."""
        self._counts += torch.bincount(feature, minlength=len(self._counts)).cpu()
        firing = torch.bincount(token, minlength=tokens)
        self._by_number = _sum(self._by_number, torch.bincount(firing).cpu())
        self.tokens += tokens

    @property
    def by_number(self) -> Int[Tensor, "most"]:
        """How many tokens there are on which so many features fire."""
        return self._by_number.clone()

    @property
    def density(self) -> Float[Tensor, "d_sae"]:
        """Fraction of tokens on which each feature fires, float32."""
        return (self._counts.double() / max(self.tokens, 1)).float()

    @property
    def l0(self) -> float:
        """Features that fire per token."""
        return _ratio(float(self._counts.sum()), self.tokens)

    @property
    def dead_fraction(self) -> float:
        """Fraction of features that fired on none of the tokens."""
        return float((self._counts == 0).double().mean())


class Spread:
    """How positive numbers are spread: a histogram in quarter-octaves, from 2^-60 to 2^60. Zeros are left out.

    Example:
        >>> spread = Spread()
        >>> spread.add(torch.tensor([4.0, 4.5, 8.0, 0.0]))
        >>> spread.histogram()
        (4.0, tensor([2, 0, 0, 0, 1]))
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(2 * _OCTAVES * BINS_PER_OCTAVE, dtype=torch.int64)

    def add(self, values: Float[Tensor, "n"]) -> None:
        """Count more numbers."""
        exact = _float64(values).cpu()
        bins = ((exact[exact > 0].log2() + _OCTAVES) * BINS_PER_OCTAVE).floor().long()
        self._counts += torch.bincount(bins.clamp(0, len(self._counts) - 1), minlength=len(self._counts))

    def histogram(self) -> tuple[float, Int[Tensor, "bins"]]:
        """Return where the first bin begins, and what each holds, without the empty ones at the ends."""
        filled = self._counts.nonzero()[:, 0]
        if not len(filled):
            return 1.0, self._counts[:0]
        first, last = int(filled[0]), int(filled[-1])
        return float(2.0 ** (first / BINS_PER_OCTAVE - _OCTAVES)), self._counts[first : last + 1]


class LossSums:
    """A token-weighted mean of losses.

    Example:
        >>> sums = LossSums()
        >>> sums.add(torch.tensor([1.0, 2.0]))
        >>> sums.add(torch.tensor([6.0]))
        >>> sums.mean
        3.0
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0.0

    def add(self, losses: Float[Tensor, "*losses"]) -> None:
        """Count more losses, one number each."""
        self._sum += float(_float64(losses).sum())
        self.count += losses.numel()

    @property
    def mean(self) -> float:
        """Mean of all losses; NaN where there was none."""
        return _ratio(self._sum, self.count)


def _sum(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two counts, the shorter of which goes on with zeros."""
    longer, shorter = (one, other) if len(one) > len(other) else (other, one)
    total = longer.clone()
    total[: len(shorter)] += shorter
    return total


def _ratio(numerator: float, denominator: float | int) -> float:
    return numerator / denominator if denominator else math.nan


def _float64(x: Tensor) -> Tensor:
    # Apple's GPUs have no float64: there the sums are made on the CPU.
    return x.detach().cpu().double() if x.device.type == "mps" else x.detach().double()
