"""The shape annotations used throughout: checked by beartype in tests alone, free in production.

`batch` stands for any leading dimensions, `tokens` for one flattened leading dimension. A row is a feature: `W_enc[i]`
and `W_dec[i]` belong to feature i, so a slice of rows is a smaller dictionary.
"""

from jaxtyping import Float, Int
from torch import Tensor

Activation = Float[Tensor, "*batch d_in"]
"""x: what a dictionary reads."""
Written = Float[Tensor, "*batch d_write"]
"""x_hat: what a dictionary writes; `d_write` is `d_in` except in transcoders."""
Features = Float[Tensor, "*batch d_sae"]
"""f: feature activations, >= 0."""
PreActivations = Float[Tensor, "*batch d_sae"]
"""z: what the activation function is applied to."""
FlatActivation = Float[Tensor, "tokens d_in"]
"""x with its leading dimensions flattened."""
EncoderWeight = Float[Tensor, "d_sae d_in"]
"""W_enc."""
DecoderWeight = Float[Tensor, "d_sae d_write"]
"""W_dec."""
FeatureVector = Float[Tensor, "d_sae"]
"""One number per feature: b_enc, threshold, density."""
FeatureIds = Int[Tensor, "n"]
"""Ids of n features."""
