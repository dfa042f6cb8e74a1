"""Rewriting a dictionary's parameters into an equal dictionary of a simpler form; exact but for rounding."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from hfsae.sae.config import SAEConfig
from hfsae.shapes import EncoderWeight, FeatureVector


class FoldedEncoder(NamedTuple):
    """A gated encoder as weights, biases and one threshold per feature."""

    W_enc: EncoderWeight
    b_enc: FeatureVector
    threshold: FeatureVector


def fold_gated(
    W_enc: EncoderWeight, b_gate: FeatureVector, r_mag: FeatureVector, b_mag: FeatureVector
) -> FoldedEncoder:
    """Return the thresholded encoder that a gated one equals.

    The gate opens where ``w.x + b_gate > 0`` and lets ``z = e^r w.x + b_mag`` through. Since
    ``w.x = (z - b_mag) / e^r``, it opens where ``z > b_mag - e^r b_gate``: a threshold on z.

    Shape: W_enc: ``[d_sae, d_in]``, the gate's rows; the vectors: ``[d_sae]``.
    Source: Rajamanoharan et al. 2024, arXiv:2404.16014.
    """
    scale = r_mag.exp()
    threshold = (b_mag.float() - scale.float() * b_gate.float()).clamp(min=0)
    return FoldedEncoder(W_enc * scale.unsqueeze(1), b_mag, threshold)


def fold_scale(config: SAEConfig, tensors: Mapping[str, Tensor]) -> tuple[SAEConfig, dict[str, Tensor]]:
    """Return the dictionary that reads raw activations and equals one with ``normalize="scale"``.

    ``W_enc (s x - b) + c = (s W_enc) (x - b / s) + c``, and what it writes is divided by s; thresholds stay. A
    transcoder only reads scaled activations, so of it the encoder alone changes.
    """
    folded = dict(tensors)
    if config.normalize != "scale" or config.scale is None:
        return config, folded
    scale = config.scale
    folded["W_enc"] = tensors["W_enc"] * scale
    if "b_pre" in tensors:
        folded["b_pre"] = tensors["b_pre"] / scale
    if not config.is_transcoder:
        folded["W_dec"], folded["b_dec"] = tensors["W_dec"] / scale, tensors["b_dec"] / scale
    elif config.b_pre == "tied":
        folded["b_pre"] = tensors["b_dec"] / scale
        return replace(config, normalize="none", scale=None, b_pre="own"), folded
    return replace(config, normalize="none", scale=None), folded
