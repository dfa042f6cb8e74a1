"""Matching pursuit: an encoder that picks one feature at a time, each on what the earlier ones left over.

1. The residual begins as the centred activation.
2. The feature with the largest pre-activation on the residual is picked; where that is not above its threshold, the
   token is done.
3. Its decoder row, times that value, is taken off the residual. Repeat from 2, at most k times; picked twice, it adds
   up.

The threshold, not k, ends most tokens: those with much to say get many features, and only they are scanned again.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hfsae.sae.kernels import gather_decode, topk_scan
from hfsae.shapes import DecoderWeight, EncoderWeight, FeatureVector, FlatActivation


def matching_pursuit(
    x: FlatActivation,
    W_enc: EncoderWeight,
    bias: FeatureVector,
    W_dec: DecoderWeight,
    k: int,
    threshold: FeatureVector,
) -> tuple[Float[Tensor, "nnz"], Int[Tensor, "nnz"], Int[Tensor, "offsets"]]:
    """Return the values and the features of at most k picks a token, and where each token's begin.

    Shape: x: ``[tokens, d_in]``. returns: values, indices ``[nnz]``, by token then feature; offsets ``[tokens + 1]``.
    Source: Costa et al. 2025, arXiv:2506.03093; a threshold for what is picked is ours.
    """
    rounds = list(picks(x, W_enc, bias, W_dec, k, threshold))
    values, indices, tokens = (torch.cat(parts) for parts in zip(*rounds, strict=True))
    return by_token(values, indices, tokens, (len(x), len(W_enc)))


def picks(
    x: FlatActivation,
    W_enc: EncoderWeight,
    bias: FeatureVector,
    W_dec: DecoderWeight,
    k: int,
    threshold: FeatureVector,
) -> Iterator[tuple[Float[Tensor, "n"], Int[Tensor, "n"], Int[Tensor, "n"]]]:
    """Yield the values, the features and the tokens of each round of picks: of the tokens that are not done."""
    residual, tokens = x, torch.arange(len(x), device=x.device)
    for _ in range(k):
        value, index = topk_scan(residual, W_enc, bias, 1)
        fires = above(value, threshold[index]).squeeze(1)
        value, index, tokens, residual = value[fires], index[fires], tokens[fires], residual[fires]
        yield value.flatten(), index.flatten(), tokens
        if not len(tokens):
            return
        residual = residual - gather_decode(value, index, W_dec, None)


def above(values: Tensor, threshold: Tensor) -> Tensor:
    """Return which values exceed their threshold; a NaN does, so that it is never taken for what does not fire."""
    return (values <= threshold.clamp(min=0)).logical_not()


def by_token(
    values: Float[Tensor, "n"], indices: Int[Tensor, "n"], tokens: Int[Tensor, "n"], shape: tuple[int, int]
) -> tuple[Float[Tensor, "nnz"], Int[Tensor, "nnz"], Int[Tensor, "offsets"]]:
    """Return entries in the order of tokens, then features, each feature of a token once: their values add up."""
    count, d_sae = shape
    places, entry = torch.unique(tokens * d_sae + indices, return_inverse=True)
    offsets = torch.searchsorted(places, torch.arange(count + 1, device=tokens.device) * d_sae)
    return values.new_zeros(len(places)).index_add(0, entry, values), places % d_sae, offsets
