"""The encoder's product ``x W^T + b`` by the fastest exact kernel at hand.

On CPUs torch hands fp32 products to MKL, while oneDNN's kernel (the one that inductor uses) was up to twice as fast on
AMD and as fast elsewhere. It is a private operator: it is tried once on a small product and used only where it is there
and right. The choice is by result, never by timing, so that two runs on one machine agree bit for bit.
"""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_AGREES_TO = 1e-5


def affine(
    x: Float[Tensor, "tokens d_in"], weight: Float[Tensor, "rows d_in"], bias: Float[Tensor, "rows"]
) -> Float[Tensor, "tokens rows"]:
    """Return ``x @ weight.T + bias``; for use where no gradient is needed."""
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or not len(x) or not len(weight)
    if plain or torch.compiler.is_compiling() or not torch.backends.mkldnn.enabled or not _onednn_is_right():
        return functional.linear(x, weight, bias)
    return _onednn(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


@cache
def _onednn_is_right() -> bool:
    """Tell whether the operator exists here and agrees with torch's own product."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((5, 33), (70, 33), (70,)))
    try:
        got = _onednn(x, weight, bias)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return got.shape == (5, 70) and bool((got - functional.linear(x, weight, bias)).abs().max() < _AGREES_TO)
