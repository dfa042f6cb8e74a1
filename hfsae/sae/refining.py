"""Refined TopK: the k features of a token, chosen once more after a look at what the first choice left over.

1. The 4k largest pre-activations are candidates; the first k of them are a first code.
2. Each candidate takes in what lies along its decoder row of what that code leaves over: one step of iterative hard
   thresholding. What only looked strong, for lying near something that fires, loses; what was hidden gains.
3. The k largest of the candidates are the code.

It reads d_sae rows once, as TopK does; matching pursuit reads them k times.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hfsae.sae.kernels import gather_decode, preactivations_at, products_at, topk_scan
from hfsae.shapes import DecoderWeight, EncoderWeight, FeatureVector, FlatActivation

_CANDIDATES = 4
"""Candidates of a token, as a multiple of k; with many more, features that lie close together gain all at once."""


def refined_topk(
    x: FlatActivation, W_enc: EncoderWeight, bias: FeatureVector, W_dec: DecoderWeight, k: int
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """Return the values and the features of each token's refined code, 0 where a slot did not fire.

    Shape: x: ``[tokens, d_in]``, centred. returns: ``[tokens, k]`` each.
    Source: the step is that of Blumensath and Davies 2009, "Iterative hard thresholding for compressed sensing".
    """
    values, indices = topk_scan(x, W_enc, bias, min(_CANDIDATES * k, len(W_enc)))
    first = torch.cat([values[:, :k], torch.zeros_like(values[:, k:])], dim=1)
    left = x - gather_decode(first, indices, W_dec, None)
    with torch.no_grad():
        starts = torch.arange(len(x) + 1, device=x.device) * indices.shape[1]
        along = products_at(left, W_dec, indices.flatten(), starts).view(indices.shape)
    along = preactivations_at(left, W_dec, torch.zeros_like(bias), along, indices)
    values, places = (first + along).relu().topk(k, dim=1)
    return values, indices.gather(1, places)
