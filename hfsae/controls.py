"""Dictionaries whose evaluation is known beforehand: the identity, zero, the mean, and principal components.

The identity recovers everything (FVU 0, loss recovered 1, KL 0). Zero is zero ablation and the mean is mean ablation
(loss recovered 0). Principal components are the best linear reconstruction of their rank: what sparsity competes with.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hfsae.dictionary import SAE
from hfsae.errors import InvalidValue
from hfsae.sae.config import SAEConfig


def identity_dictionary(d_in: int) -> SAE:
    """Return a dictionary that gives back what it reads, bit for bit: features for both signs of each coordinate.

    Example:
        >>> x = torch.randn(3, 8)
        >>> torch.equal(identity_dictionary(8)(x), x)
        True
    """
    return _signed(torch.eye(d_in), torch.zeros(d_in))


def zero_dictionary(d_in: int) -> SAE:
    """Return a dictionary that never fires and writes zero."""
    return _constant(torch.zeros(d_in))


def mean_dictionary(x: Float[Tensor, "tokens d_in"]) -> SAE:
    """Return a dictionary that never fires and writes the mean of x.

    Raises: InvalidValue: when x holds no token.
    """
    _check_tokens(x, 1)
    return _constant(x.double().mean(0))


def pca_dictionary(x: Float[Tensor, "tokens d_in"], components: int) -> SAE:
    """Return a dictionary that writes the projection of what it reads on the first principal components of x.

    Each component is two features, one for each sign, so that L0 is the number of components.

    Args:
        x: Activations to take the components of.
        components: How many; at most the width of x, and its tokens.

    Raises: InvalidValue: when x has fewer tokens or a smaller width.
    """
    _check_tokens(x, components)
    if not 1 <= components <= x.shape[1]:
        raise InvalidValue(
            f"components={components} is out of range. x has width {x.shape[1]}. Take 1 to {x.shape[1]}."
        )
    mean = x.double().mean(0)
    _, _, directions = torch.linalg.svd(x.double() - mean, full_matrices=False)
    return _signed(directions[:components], mean)


def _signed(directions: Tensor, mean: Tensor) -> SAE:
    rows = torch.cat([directions, -directions])
    sae = SAE(SAEConfig(architecture="standard", d_in=directions.shape[1], d_sae=len(rows)))
    return _filled(sae, rows, mean)


def _constant(value: Tensor) -> SAE:
    sae = SAE(SAEConfig(architecture="standard", d_in=len(value), d_sae=1))
    return _filled(sae, torch.zeros(1, len(value)), value)


@torch.no_grad()
def _filled(sae: SAE, rows: Tensor, bias: Tensor) -> SAE:
    sae.W_enc.copy_(rows)
    sae.W_dec.copy_(rows)
    sae.b_enc.zero_()
    sae.b_dec.copy_(bias)
    return sae.eval()


def _check_tokens(x: Tensor, needed: int) -> None:
    if x.ndim != 2 or len(x) < max(needed, 1):
        raise InvalidValue(f"x is {list(x.shape)}. [tokens, d_in] with at least {max(needed, 1)} tokens was expected.")
