"""Dictionaries that nobody trained, to hold beside one that was: the neuron basis, and random directions."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from hfsae.dictionary import SAE
from hfsae.errors import InvalidValue
from hfsae.sae.config import SAEConfig

_STREAM = 7_919_000


def neuron_basis(like: SAE) -> SAE:
    """Return the TopK dictionary whose features are the coordinates of the activation, one for each sign.

    The directions are ``[I; -I]``: with k as large as the width it reconstructs everything. It shares k and b_dec with
    another dictionary; of features there are 2 * d_in, since there are no more coordinates.

    Raises: InvalidValue: when the other dictionary has no k.
    """
    eye = torch.eye(like.config.d_in)
    return _with_rows(like, torch.cat([eye, -eye]))


def random_directions(like: SAE, seed: int) -> SAE:
    """Return a TopK dictionary of random unit directions, with the k that another was trained for, its d_sae and b_dec.

    Args: seed: Of the directions.
    Raises: InvalidValue: when the other dictionary has no k.
    """
    # Not the seed itself: a world of the same seed and size would have drawn the very same directions.
    generator = Generator().manual_seed(_STREAM + seed)
    rows = torch.randn(like.config.d_sae, like.config.d_in, generator=generator)
    return _with_rows(like, torch.nn.functional.normalize(rows, dim=-1))


@torch.no_grad()
def _with_rows(like: SAE, rows: Float[Tensor, "d_sae d_in"]) -> SAE:
    k, d_in = like.config.k, like.config.d_in
    if k is None:
        raise InvalidValue(f"A {like.config.architecture} dictionary has no k. A control keeps the k of a topk one.")
    k = min(max(k // like.config.row.spare, 1), len(rows))
    sae = SAE(SAEConfig(architecture="topk", d_in=d_in, d_sae=len(rows), k=k))
    for parameter, value in ((sae.W_enc, rows), (sae.W_dec, rows), (sae.b_dec, like.b_dec)):
        parameter.copy_(value)
    sae.b_enc.zero_()
    return sae.eval()
