"""`SparseFeatures`: feature activations as values and indices: memory is O(tokens * k), never O(tokens * d_sae).

Two layouts. Top-k codes have k slots per token: values and indices ``[*leading, k]``, a slot of value 0 did not fire.
The others have rows of varying length: values and indices ``[nnz]``; token t owns ``offsets[t]:offsets[t + 1]``.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hfsae.errors import InvalidType, InvalidValue, OutOfRange

FeatureList = int | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """Feature activations of some tokens, those that fired and (in top-k slots) a few zeros.

    Example:
        >>> f = SparseFeatures(torch.tensor([[3.0, 0.0], [1.0, 2.0]]), torch.tensor([[4, 0], [2, 0]]), d_sae=5)
        >>> f.shape
        (2, 5)
        >>> f[1]
        (tensor([0, 2]), tensor([2., 1.]))
        >>> f.to_dense()
        tensor([[0., 0., 0., 0., 3.],
                [2., 0., 1., 0., 0.]])
    """

    values: Tensor
    """Activations, >= 0."""
    indices: Tensor
    """The feature of each value, int64."""
    d_sae: int
    """Number of features of the dictionary."""
    offsets: Tensor | None = None
    """Where each token's entries begin, ``[tokens + 1]``, int64; None for top-k slots."""
    leading: tuple[int, ...] | None = None
    """The leading dimensions of x; None reads them off the values, or takes one dimension of tokens."""
    mean: Tensor | None = None
    """Each token's mean ``[*leading, 1]``, where x was layer-normalised: decode puts it back."""
    std: Tensor | None = None
    """Each token's standard deviation, likewise."""

    def __repr__(self) -> str:
        return f"SparseFeatures{list(self.shape)} with {int((self.values != 0).sum()):,} that fired"

    def __post_init__(self) -> None:
        if self.values.shape != self.indices.shape:
            shapes = f"values {list(self.values.shape)} and indices {list(self.indices.shape)}"
            raise InvalidValue(f"{shapes} differ. Each value needs its feature. Give both the same shape.")
        if self.leading is None:
            tokens = self.values.shape[:-1] if self.offsets is None else (len(self.offsets) - 1,)
            object.__setattr__(self, "leading", tuple(tokens))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape it would have as a dense tensor, ``(*leading, d_sae)``."""
        return (*(self.leading or ()), self.d_sae)

    @property
    def tokens(self) -> int:
        """How many tokens it holds."""
        return math.prod(self.shape[:-1])

    def token_of_value(self) -> Int[Tensor, "nnz"]:
        """Return the flat token of each value, in the order of ``values.flatten()``."""
        tokens = torch.arange(self.tokens, device=self.values.device)
        if self.offsets is None:
            return tokens.repeat_interleave(self.values.shape[-1])
        return tokens.repeat_interleave(self.offsets.diff(), output_size=self.values.numel())

    def fired(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (flat token, feature, value) of every entry that is not 0, token by token."""
        values, indices, tokens = self.values.flatten(), self.indices.flatten(), self.token_of_value()
        keep = values != 0
        return tokens[keep], indices[keep], values[keep]

    def to_dense(self) -> Float[Tensor, "*leading d_sae"]:
        """Return them as a dense tensor ``[*leading, d_sae]``."""
        flat = self.token_of_value() * self.d_sae + self.indices.flatten()
        dense = self.values.new_zeros(self.tokens * self.d_sae)
        # Added, not written: an empty slot may name a feature that another slot of its token holds.
        return dense.index_add(0, flat, self.values.flatten()).view(self.shape)

    def at(self, features: FeatureList) -> Float[Tensor, "*leading n"]:
        """Return the activations of those features alone, ``[*leading, n]``."""
        wanted = feature_ids(features, self.d_sae).to(self.values.device)
        column = torch.full((self.d_sae,), -1, dtype=torch.int64, device=self.values.device)
        unique, place = torch.unique(wanted, return_inverse=True)
        column[unique] = torch.arange(len(unique), device=wanted.device)
        columns = column[self.indices.flatten()]
        keep = columns >= 0
        found = self.values.new_zeros(self.tokens * len(unique))
        flat = self.token_of_value()[keep] * len(unique) + columns[keep]
        found = found.index_add(0, flat, self.values.flatten()[keep])
        return found.view(self.tokens, len(unique))[:, place].view(*self.shape[:-1], len(wanted))

    def l0(self) -> Int[Tensor, "*leading"]:
        """Return how many features fire on each token, ``[*leading]``."""
        tokens, _, _ = self.fired()
        return torch.bincount(tokens, minlength=self.tokens).view(self.shape[:-1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, token: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return (features, values) of one token, those that fired, strongest first.

        Args: token: One index per leading dimension; a single integer counts the flattened tokens.
        Raises: OutOfRange: when there is no such token.
        """
        flat = self._flat_token(token)
        if self.offsets is None:
            values, indices = (t.reshape(self.tokens, t.shape[-1])[flat] for t in (self.values, self.indices))
        else:
            mine = slice(int(self.offsets[flat]), int(self.offsets[flat + 1]))
            values, indices = self.values[mine], self.indices[mine]
        keep = values != 0
        values, order = values[keep].sort(descending=True)
        return indices[keep][order], values

    def _flat_token(self, token: int | tuple[int, ...]) -> int:
        index, sizes = (token, self.shape[:-1]) if isinstance(token, tuple) else ((token,), (self.tokens,))
        if len(index) != len(sizes) or any(not -n <= i < n for i, n in zip(index, sizes, strict=False)):
            raise OutOfRange(f"Token {token!r} is out of range. The tokens are {list(self.shape[:-1])}.")
        flat = 0
        for i, n in zip(index, sizes, strict=True):
            flat = flat * n + i % n
        return flat


def feature_ids(features: FeatureList, d_sae: int) -> Int[Tensor, "n"]:
    """Return the features a caller named as an int64 tensor on the CPU, checked against the dictionary's width.

    Raises:
        InvalidType: when they are not integers.
        InvalidValue: when there is none.
        OutOfRange: when one is negative or beyond the last.
    """
    if isinstance(features, Tensor):
        if features.dtype.is_floating_point or features.dtype.is_complex or features.dtype == torch.bool:
            raise InvalidType(f"features of dtype {features.dtype} name no features. They must be integers.")
        ids = features.detach().to("cpu", torch.int64).flatten()
    else:
        ids = torch.tensor(_integers(features), dtype=torch.int64)
    if not len(ids):
        raise InvalidValue("features is empty. It must name one feature or more.")
    wrong = ids[(ids < 0) | (ids >= d_sae)]
    if len(wrong):
        raise OutOfRange(f"Feature {int(wrong[0])} does not exist. This dictionary has features 0 to {d_sae - 1}.")
    return ids


def _integers(features: int | Iterable[int]) -> list[int]:
    named = [features] if isinstance(features, int) else features
    if isinstance(named, (str, bytes)) or not isinstance(named, Iterable):
        raise InvalidType(f"features={named!r:.60} is no feature. It must be an integer or a list of integers.")
    out = []
    for i in named:
        if isinstance(i, bool) or not hasattr(i, "__index__"):
            raise InvalidType(f"Feature {i!r:.60} is of type {type(i).__name__}. It must be an integer.")
        if not -(2**63) <= i.__index__() < 2**63:
            raise OutOfRange("A feature beyond 2**63 does not exist.")
        out.append(i.__index__())
    return out
