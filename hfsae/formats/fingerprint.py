"""The fingerprint: numbers a dictionary must reproduce when it is loaded, so that no wrong one loads silently.

1. A fixed probe vector stands in for an activation. Each feature's row gives two numbers: its pre-activation on the
   probe, and its decoder row times a probe plus its threshold. Stored per row, they serve a slice too.
2. The features strongest on the probe are stored in the config by id and value, for a reader of the file.
3. At load both are computed again. A transposed, permuted, cut or edited matrix gives other numbers, and the one pass
   over the weights finds NaN and infinity as well.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from hfsae.errors import CheckpointError, HfsaeWarning
from hfsae.formats.safetensors_io import check_finite
from hfsae.sae.config import SAEConfig

PROBES = ("probe_encoder", "probe_decoder")
_SHOWN = 8
_NEAR_OVERFLOW = 1e30
# fp32 sums over d terms differ between machines by about 1e-6 of their size; damage that matters is far larger.
_TOLERANCE = 1e-3
_SAMPLED_ROWS = 256
_ROWS_AT_ONCE = 2**20  # numbers, in fp32: 4 MB, which stay in cache


def probe_vector(width: int) -> Tensor:
    """Return the probe ``[width]``: odd sixteenths from -1 to 1 in a fixed order, exact in any float dtype, none 0."""
    steps = (torch.arange(width, dtype=torch.int64) * 40503 + 9) % 65521 % 16
    return (2 * steps - 15).float() / 16


def row_probes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the two numbers of each row, fp32 ``[rows]`` each."""
    encoder = _products(tensors["W_enc"]) + tensors["b_enc"].float()
    decoder = _products(tensors["W_dec"])
    if "threshold" in tensors:
        decoder = decoder + tensors["threshold"].float()
    return dict(zip(PROBES, (encoder, decoder), strict=True))


def describe(config: SAEConfig, tensors: Mapping[str, Tensor], probes: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fingerprint as the config stores it."""
    values, ids = probes["probe_encoder"].topk(min(_SHOWN, config.d_sae))
    return {
        "content": content_hash(config, tensors),
        "top_features": ids.tolist(),
        "top_values": values.tolist(),
        "vectors": {name: _product_of(tensors[name]) for name in ("b_dec", "b_pre", "W_skip") if name in tensors},
    }


def content_hash(config: SAEConfig, tensors: Mapping[str, Tensor]) -> str:
    """Return eight hex digits that stand for these weights: from their bytes, of at most 256 rows of each matrix."""
    digest = hashlib.sha256(
        f"{config.architecture} {config.k} {config.b_pre} {config.normalize} {config.skip}".encode()
    )
    for name, tensor in sorted(tensors.items()):
        rows = tensor[:: -(-len(tensor) // _SAMPLED_ROWS)] if tensor.ndim > 1 else tensor
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(rows.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


def verify(path: Path, tensors: Mapping[str, Tensor], stored: Mapping[str, Tensor], recorded: object) -> None:
    """Refuse weights that do not give the stored numbers; warn of rows that are zero and numbers near overflow.

    Args:
        path: The weights' file, for messages.
        stored: The probes of the same rows.
        recorded: The config's fingerprint.
    Raises: CheckpointError: when a number differs, or a weight is NaN or infinite.
    """
    for name in ("b_enc", "b_dec", "b_pre", "threshold"):
        if name in tensors:
            check_finite(path, name, tensors[name])
    computed = row_probes(tensors)
    for name, weight in (("probe_encoder", "W_enc"), ("probe_decoder", "W_dec")):
        if not bool(torch.isfinite(computed[name]).all()):
            check_finite(path, weight, tensors[weight])
        _compare(path, weight, computed[name], stored[name])
    _check_vectors(path, tensors, recorded)
    _warn_of_oddities(path, tensors, computed)


def _compare(path: Path, weight: str, computed: Tensor, stored: Tensor) -> None:
    scale = stored.double().square().mean().sqrt().float() + stored.abs()
    wrong = ((computed - stored).abs() > _TOLERANCE * scale).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise CheckpointError(
            f"{path}: {weight!r} does not match its fingerprint in {len(wrong)} of {len(stored)} rows (row {row} gives "
            f"{float(computed[row]):.6g}, recorded is {float(stored[row]):.6g}). The file is damaged, or of another "
            "dictionary. Fetch or save it again."
        )


def _check_vectors(path: Path, tensors: Mapping[str, Tensor], recorded: object) -> None:
    vectors = recorded.get("vectors") if isinstance(recorded, Mapping) else None
    if not isinstance(vectors, Mapping):
        raise CheckpointError(f"{path}: its config has no fingerprint to check it by. Save the dictionary again.")
    for name in ("b_dec", "b_pre", "W_skip"):
        if name not in tensors:
            continue
        check_finite(path, name, tensors[name])
        got, want = _product_of(tensors[name]), vectors.get(name)
        size = float(tensors[name].float().abs().mean()) * tensors[name].shape[-1] ** 0.5
        if not isinstance(want, float) or not abs(got - want) <= _TOLERANCE * (size + abs(got)):
            raise CheckpointError(
                f"{path}: {name!r} gives {got:.6g}, its fingerprint is {want!r:.40}. "
                "The file is damaged, or of another dictionary. Fetch or save it again."
            )


def _warn_of_oddities(path: Path, tensors: Mapping[str, Tensor], probes: Mapping[str, Tensor]) -> None:
    largest = max(float(probe.abs().max()) for probe in probes.values())
    if largest > _NEAR_OVERFLOW:
        warn(f"{path} holds weights so large ({largest:.2g}) that products overflow.", HfsaeWarning, stacklevel=2)
    decoder = probes["probe_decoder"]
    if "threshold" in tensors:
        decoder = decoder - tensors["threshold"].float()
    suspects = tensors["W_dec"][decoder.abs() <= 1e-6 * decoder.abs().mean()]
    zero = len(suspects) - int(suspects.any(dim=1).sum())
    if zero:
        warn(f"{path}: {zero} decoder rows are all zero. Those features do nothing.", HfsaeWarning, stacklevel=2)


def _products(weight: Tensor) -> Tensor:
    """Return ``weight @ probe`` in fp32, without a second copy of the weight in fp32."""
    probe = probe_vector(weight.shape[1])
    parts = torch.split(weight.detach(), max(_ROWS_AT_ONCE // max(weight.shape[1], 1), 1))
    return torch.cat([part.float() @ probe for part in parts])


def _product_of(tensor: Tensor) -> float:
    matrix = tensor.detach().float().reshape(-1, tensor.shape[-1])
    return float((matrix @ probe_vector(matrix.shape[1])) @ probe_vector(len(matrix)))
