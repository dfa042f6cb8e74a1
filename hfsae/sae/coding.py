"""The arithmetic of a dictionary on flat tokens, step by step: read x, make codes, write x_hat.

Kept apart from the module that holds the weights, so that each step is a plain function of tensors and a configuration.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from hfsae.errors import InvalidType, InvalidValue
from hfsae.sae.config import SAEConfig
from hfsae.sae.kernels import gather_decode, threshold_scan, topk_scan
from hfsae.sae.pursuit import matching_pursuit
from hfsae.sae.refining import refined_topk

_TOKENS_AT_ONCE = 2048
SEQUENTIAL = {"matching_pursuit": matching_pursuit, "refined_topk": refined_topk}
"""How architectures encode whose features are chosen on what others left over."""
_EPS = 1e-5  # of layer norm: added to the standard deviation, outside the root, as OpenAI's dictionaries have it


@runtime_checkable
class Weights(Protocol):
    """What the arithmetic needs of a dictionary."""

    config: SAEConfig
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_pre: Tensor | None
    threshold: Tensor | None
    W_skip: Tensor | None


class Input(NamedTuple):
    """An activation as the encoder reads it."""

    x: Tensor
    """``[tokens, d_in]``, normalised and centred, in the dictionary's dtype."""
    mean: Tensor | None = None
    """``[*leading, 1]``, where x was layer-normalised."""
    std: Tensor | None = None
    """Likewise."""


class Codes(NamedTuple):
    """Feature activations of flat tokens: rows of the dictionary and values, with offsets unless k slots per token."""

    values: Tensor
    rows: Tensor
    offsets: Tensor | None


def check_activation(w: Weights, x: object) -> None:
    """Refuse an x that this dictionary cannot read.

    Raises: InvalidType, InvalidValue: when it is no float tensor, or of another width or device.
    """
    width, device = w.config.d_in, w.W_enc.device
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InvalidType(f"x is {what}. It must be a float tensor [..., {width}].")
    if x.ndim < 1 or x.shape[-1] != width:
        raise InvalidValue(f"x is {list(x.shape)}. This dictionary reads activations [..., {width}].")
    if x.device != device and not x.is_meta:
        raise InvalidValue(f"x is on {x.device}, the dictionary on {device}. Move it: sae.to({str(x.device)!r}).")


def read(w: Weights, x: Tensor) -> Input:
    """Return x as the encoder reads it: flat, normalised and centred."""
    mean, std = token_norm(x) if w.config.normalize == "layer_norm" else (None, None)
    if mean is not None and std is not None:
        x = (x - mean) / (std + _EPS)
    x = x.reshape(-1, x.shape[-1]).to(w.W_enc.dtype)
    if w.config.normalize == "scale":
        x = x * w.config.scale  # type: ignore[operator]
    b_pre = w.b_dec if w.config.b_pre == "tied" else w.b_pre
    return Input(x if b_pre is None else x - b_pre, mean, std)


def token_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's mean and (unbiased) standard deviation ``[..., 1]``, in fp32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.mean(-1, keepdim=True), wide.std(-1, keepdim=True)


def product(w: Weights, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return the pre-activations of those rows (or all) on flat x."""
    if rows is None:
        return functional.linear(x, w.W_enc, w.b_enc)
    return functional.linear(x, w.W_enc[rows], w.b_enc[rows])


def activate(w: Weights, z: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return the feature activations of a thresholded dictionary, dense.

    A NaN stays NaN: an activation of NaN must not look like one on which nothing fires.
    """
    if w.threshold is None:
        return z.relu()
    floor = (w.threshold if rows is None else w.threshold[rows]).clamp(min=0)
    return z.masked_fill(z <= floor, 0)


def encode_flat(w: Weights, x: Tensor) -> Codes:
    """Return the codes of flat x, as the encoder reads it."""
    kind, k = w.config.row.kind, w.config.k or 1
    if kind == "thresholded":
        return Codes(*threshold_scan(x, w.W_enc, w.b_enc, w.threshold))
    if kind == "topk":
        return Codes(*topk_scan(x, w.W_enc, w.b_enc, k), None)
    assert w.threshold is not None
    return Codes(*SEQUENTIAL[w.config.architecture](x, w.W_enc, w.b_enc, w.W_dec, k, w.threshold))


def decode_flat(w: Weights, codes: Codes) -> Tensor:
    """Return what flat codes stand for, before normalisation is undone."""
    return gather_decode(codes.values.to(w.W_dec.dtype), codes.rows, w.W_dec, w.b_dec, codes.offsets)


def reconstruct_flat(w: Weights, x: Tensor) -> Tensor:
    """Return the reconstruction of flat x, before normalisation is undone, some tokens at a time.

    The codes of a thresholded dictionary that fires on everything (an untrained one) are then never all held at once.
    """
    parts = [decode_flat(w, encode_flat(w, part)) for part in torch.split(x, _TOKENS_AT_ONCE)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def write(w: Weights, x_hat: Tensor, x: Tensor | None, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """Return the reconstruction in the space of the model: normalisation undone, skip path added.

    Args: x: The raw activation; needed for a skip path, and for layer norm without its mean and std.
    Raises: InvalidValue: when it is needed and missing.
    """
    c = w.config
    if c.normalize == "layer_norm" and not c.is_transcoder:
        if (mean is None or std is None) and x is not None:
            mean, std = token_norm(x)
        if mean is None or std is None:
            raise InvalidValue(
                "f carries no mean and std, which this layer-norm dictionary puts back. "
                "Decode what `encode` or `encode_sparse` returned, or pass x=."
            )
        x_hat = x_hat * std + mean
    if c.normalize == "scale" and not c.is_transcoder:
        x_hat = x_hat / c.scale  # type: ignore[operator]
    if w.W_skip is not None:
        if x is None:
            raise InvalidValue("x is missing. The skip path of this transcoder reads it. Pass decode(f, x=x).")
        x_hat = x_hat + functional.linear(x.to(w.W_skip.dtype), w.W_skip)
    return x_hat
