"""What the readers of other libraries' files share: from their tensors, in our layout, to a `Checkpoint`.

A reader says which of its keys is which of ours and which of them it stores transposed; it never looks at a shape to
decide. Here the result is checked: every parameter there, of the right shape, finite, thresholds in fp32.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hfsae.errors import CheckpointError, HfsaeError
from hfsae.formats.checkpoint import Checkpoint
from hfsae.formats.safetensors_io import check_finite, check_shapes
from hfsae.sae.base import parameter_shapes
from hfsae.sae.config import SAEConfig
from hfsae.sae.sparse import FeatureList, feature_ids

T = TypeVar("T")

_PER_ROW = ("W_enc", "b_enc", "W_dec", "threshold")
_SHOWN = 1500


@dataclass(frozen=True)
class RawConfig:
    """A config as another library wrote it, that names itself and shows itself whole in errors."""

    path: Path
    """Its file, or that of the weights where there is none."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What it says."""

    def error(self, problem: str) -> CheckpointError:
        """Return the error that says what is wrong with it."""
        shown = json.dumps(self.values, default=str)[:_SHOWN] if self.values else "no config"
        return CheckpointError(f"{self.path}: {problem} What is there: {shown}")

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a value of that type; a missing one is the default.

        Raises: CheckpointError: when it is missing without a default, or of another type.
        """
        value = self.values.get(key, default)
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            what = "is missing" if value is None else f"is of type {type(value).__name__}"
            raise self.error(f"{key!r} {what}. It must be of type {kind.__name__}.")
        return value  # type: ignore[return-value]

    def inside(self, key: str) -> "RawConfig":
        """Return the object it holds under that key.

        Raises: CheckpointError: when there is none.
        """
        return RawConfig(self.path, self.get(key, dict))


def renamed(
    raw: RawConfig, tensors: Mapping[str, Tensor], names: Mapping[str, str], *, ignored: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Return the tensors under our names.

    Args:
        names: Theirs by ours; a trailing ``.T`` says that theirs is stored transposed.
        ignored: Those of theirs that do not matter.

    Raises: CheckpointError: when one is missing, one is left over, or one to transpose is no matrix.
    """
    wanted = {theirs.removesuffix(".T") for theirs in names.values()}
    missing, extra = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted - set(ignored))
    if missing or extra:
        held = ", ".join(f"{key} {list(t.shape)}" for key, t in sorted(tensors.items()))[:_SHOWN]
        what = f"{missing[0]!r} is missing." if missing else f"{extra[0][:80]!r} is not known."
        raise raw.error(f"{what} Expected are {', '.join(sorted(wanted))}; the weights hold {held or 'nothing'}.")
    found = {}
    for ours, theirs in names.items():
        tensor = tensors[theirs.removesuffix(".T")]
        if theirs.endswith(".T") and tensor.ndim != 2:
            raise raw.error(f"{theirs.removesuffix('.T')!r} is {list(tensor.shape)}. It must be a matrix.")
        found[ours] = tensor.T if theirs.endswith(".T") else tensor
    return found


def build(
    raw: RawConfig, weights: Path, tensors: Mapping[str, Tensor], features: FeatureList | None = None, **fields: Any
) -> Checkpoint:
    """Return the checkpoint of those tensors, or of those rows of them, checked.

    Args: fields: Of `SAEConfig`; sizes and dtype are read off the tensors and, where given, must agree with them.
    Raises: CheckpointError: naming file and key, and showing the config.
    """
    for name, dims in (("W_enc", 2), ("W_dec", 2)):
        if tensors[name].ndim != dims or not tensors[name].is_floating_point():
            raise raw.error(f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}. It must be a float matrix.")
    d_sae, d_in = tensors["W_enc"].shape
    sizes = {"d_in": d_in, "d_sae": d_sae}
    for name, size in sizes.items():
        if fields.get(name) not in (None, size):
            raise raw.error(f"the config says {name}={fields[name]!r}, the weights have {size}. They must agree.")
    fields = {"dtype": str(tensors["W_enc"].dtype).removeprefix("torch.")} | fields | sizes
    try:
        config = SAEConfig(**fields)
    except HfsaeError as error:
        raise raw.error(str(error)) from error
    shaped = {name: _threshold(tensor, d_sae) if name == "threshold" else tensor for name, tensor in tensors.items()}
    check_shapes(weights, shaped, parameter_shapes(config))
    ids = None if features is None else feature_ids(features, d_sae)
    chosen = {name: tensor[ids] if ids is not None and name in _PER_ROW else tensor for name, tensor in shaped.items()}
    for name, tensor in chosen.items():
        check_finite(weights, name, tensor)
    contiguous = {name: tensor.contiguous() for name, tensor in chosen.items()}
    return Checkpoint(config=config, tensors=contiguous, source=str(weights), features=ids)


def fold_decoder_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the dictionary that lets features compete by what they contribute, ``z |w_dec|``, as one with unit rows.

    Exact where the activations are rescaled by that norm before the top-k, and only there.
    """
    norm = tensors["W_dec"].norm(dim=1).clamp(min=torch.finfo(tensors["W_dec"].dtype).tiny)
    return dict(tensors) | {
        "W_enc": tensors["W_enc"] * norm.unsqueeze(1),
        "b_enc": tensors["b_enc"] * norm,
        "W_dec": tensors["W_dec"] / norm.unsqueeze(1),
    }


def _threshold(tensor: Tensor, d_sae: int) -> Tensor:
    """One threshold per feature, in fp32: rounding it to bf16 flips the features near it."""
    return tensor.float().expand(d_sae) if tensor.ndim == 0 else tensor.float()
