"""Matching pursuit: an encoder that picks one feature at a time, each on what the earlier ones left over.

1. The residual begins as the centred activation.
2. The feature with the largest pre-activation on the residual is picked; where that is not above zero, it is done.
3. Its decoder row, times that value, is taken off the residual. Repeat from 2, k times; picked twice, it adds up.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hfsae.sae.kernels import gather_decode, topk_scan
from hfsae.shapes import DecoderWeight, EncoderWeight, FeatureVector, FlatActivation


def matching_pursuit(
    x: FlatActivation, W_enc: EncoderWeight, bias: FeatureVector, W_dec: DecoderWeight, k: int
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """Return the value and the feature of each of k picks, one slot per feature; unused slots are 0.

    Shape: x: ``[tokens, d_in]``. returns: ``[tokens, k]`` each.
    Source: Costa et al. 2025, arXiv:2506.03093.
    """
    residual, values, indices = x, [], []
    for _ in range(k):
        value, index = topk_scan(residual, W_enc, bias, 1)
        values.append(value)
        indices.append(index)
        residual = residual - gather_decode(value, index, W_dec, None)
    return _one_slot_each(torch.cat(values, 1), torch.cat(indices, 1))


def _one_slot_each(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    ordered, order = indices.sort(dim=1)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered.diff(dim=1) != 0
    slot = new.cumsum(1) - 1
    merged = torch.zeros_like(values).scatter_add(1, slot, values.gather(1, order))
    return merged, torch.zeros_like(indices).scatter(1, slot, ordered)
