"""Refined TopK: the strongest features of a token, weighed again by what a first code of them leaves over.

1. The k largest pre-activations are candidates; the strongest of them, one in so many, are a first code.
2. Each candidate takes in what lies along its decoder row of what the code leaves over: a step of iterative hard
   thresholding. What only looked strong, for lying near something that fires, loses; what was hidden gains.
3. As many of the strongest candidates are the next code; repeat from 2 once. The last time, all candidates above their
   threshold are the code.

It reads d_sae rows once, as TopK does; matching pursuit reads them for each pick.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hfsae.sae.architectures import ARCHITECTURES
from hfsae.sae.kernels import gather_decode, preactivations_at, products_at, topk_scan
from hfsae.sae.pursuit import above, by_token
from hfsae.shapes import DecoderWeight, EncoderWeight, FeatureVector, FlatActivation

_STEPS = 2
_TINY = 1e-12
_CANDIDATES = ARCHITECTURES["refined_topk"].spare
"""For each feature of a first code; with many more, features that lie close together gain all at once."""


def refined_topk(
    x: FlatActivation,
    W_enc: EncoderWeight,
    bias: FeatureVector,
    W_dec: DecoderWeight,
    k: int,
    threshold: FeatureVector,
) -> tuple[Float[Tensor, "nnz"], Int[Tensor, "nnz"], Int[Tensor, "offsets"]]:
    """Return the values and the features of each token's refined code, at most k, and where each token's begin.

    Shape: x: ``[tokens, d_in]``, centred. returns: values, indices ``[nnz]``, by token then feature; offsets
        ``[tokens + 1]``.
    Source: the step is that of Blumensath and Davies 2009, "Iterative hard thresholding for compressed sensing".
    """
    values, indices = topk_scan(x, W_enc, bias, k, ordered=False)
    for _ in range(_STEPS):
        values = _refined(values, indices, x, W_dec, max(k // _CANDIDATES, 1))
    tokens, places = above(values, threshold[indices]).nonzero(as_tuple=True)
    return by_token(values[tokens, places], indices[tokens, places], tokens, (len(x), len(W_enc)))


def _refined(values: Tensor, indices: Tensor, x: Tensor, W_dec: Tensor, count: int) -> Tensor:
    """Return the strongest candidates' code, with what lies along each candidate's row of what that leaves over."""
    kept, places = values.relu().topk(count, dim=1, sorted=False)
    left = x - gather_decode(kept, indices.gather(1, places), W_dec, None)
    with torch.no_grad():
        starts = torch.arange(len(x) + 1, device=x.device) * indices.shape[1]
        along = products_at(left, W_dec, indices.flatten(), starts).view(indices.shape)
    along = preactivations_at(left, W_dec, W_dec.new_zeros(len(W_dec)), along, indices)
    return torch.zeros_like(values).scatter(1, places, kept) + along / _squared_lengths(W_dec, indices)


def _squared_lengths(W_dec: Tensor, indices: Tensor) -> Tensor:
    """Return the squared length of each candidate's row, reading all rows only where there are fewer of them."""
    few = indices.numel() < len(W_dec)
    lengths: Tensor = torch.linalg.vector_norm(W_dec[indices] if few else W_dec, dim=-1)
    return (lengths if few else lengths[indices]).square().clamp(min=_TINY)
