"""Where activations come from: a tensor, an iterable, or a model reading text. Each is a `Rows` of ring.py."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hfsae.data.sources import Source
from hfsae.data.tokens import TokenBatch, batches, spliced_mask
from hfsae.errors import InvalidType, InvalidValue, TrainingError
from hfsae.hooks import capture
from hfsae.sae.config import SAEConfig
from hfsae.sites import Point

_CHUNK = 4096


class TensorRows:
    """The rows of a tensor, in another random order each epoch.

    Args:
        x: Activations ``[..., d_in]``, any float dtype.
        y: What is to be reconstructed ``[..., d_out]``, for a transcoder; None: x.
        seed: Of the order.
    """

    repeatable = True

    def __init__(self, x: Tensor, y: Tensor | None = None, *, seed: int) -> None:
        self._rows = joined(x, y)
        self.width, self._seed = self._rows.shape[1], seed

    def chunks(self, epoch: int, skip: int) -> Iterator[Tensor]:
        """Yield the chunks of an epoch."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._rows), generator=generator)
        for chosen in torch.split(order, _CHUNK)[skip:]:
            yield self._rows[chosen.to(self._rows.device)]

    def describe(self) -> dict[str, Any]:
        """Return what they are."""
        return {"data": f"a tensor of {len(self._rows)} activations"}


class IterableRows:
    """The rows of an iterable of tensors ``[..., d_in]``, or of pairs of what is read and what is reconstructed.

    One that can be iterated again has several epochs.
    """

    def __init__(self, source: Iterable[Tensor]) -> None:
        self._source = source
        self.repeatable = not isinstance(source, Iterator)
        self.d_in = 0
        self._first: list[Tensor] = []
        first = next(self._iterate(), None)
        if first is None:
            raise InvalidValue("The activations are empty. At least one tensor [..., d_in] is needed.")
        self.width = first.shape[1]
        if not self.repeatable:
            self._first = [first]

    def chunks(self, epoch: int, skip: int) -> Iterator[Tensor]:
        """Yield the chunks of an epoch; those skipped are read and thrown away."""
        held, self._first = self._first, []
        for chunk in islice(chain(held, self._iterate()), skip, None):
            if chunk.shape[1] != self.width:
                raise InvalidValue(
                    f"An activation has width {chunk.shape[1]}, the first had {self.width}. All have the same width."
                )
            yield chunk

    def describe(self) -> dict[str, Any]:
        """Return what they are."""
        return {"data": f"activations from a {type(self._source).__name__}"}

    def _iterate(self) -> Iterator[Tensor]:
        for item in self._source:
            x = item[0] if isinstance(item, tuple) else item
            self.d_in = x.shape[-1] if isinstance(x, Tensor) else 0
            yield joined(*item) if isinstance(item, tuple) else joined(item, None)


class ModelRows:
    """The activations of a model at one or two points, of the tokens that the dictionary stands for.

    Args:
        model: Any model that `capture` runs; it is put in eval mode and back.
        points: Where x is read and, for a transcoder, where y is.
        source: Text or token ids.
        policy: Which tokens are left out; a dictionary's config.
        token_options: Arguments of `batches`: tokenizer, context, batch_size.
    """

    def __init__(
        self, model: Any, points: Sequence[Point], source: Source, policy: SAEConfig, token_options: dict[str, Any]
    ) -> None:
        self.model, self.points, self.source, self.policy = model, points, source, policy
        self.repeatable = source.repeatable
        self.width = policy.d_in + (policy.d_write if len(points) > 1 else 0)
        self._token_options = token_options

    def chunks(self, epoch: int, skip: int) -> Iterator[Tensor]:
        """Yield the activations of an epoch; batches that are skipped are tokenised, not run."""
        read = batches(self.source.epoch(epoch), **self._token_options)
        for batch in islice(read, skip, None):
            yield self.of_batch(batch)

    def of_batch(self, batch: TokenBatch) -> Float[Tensor, "tokens width"]:
        """Return the activations of a batch's tokens that are not left out."""
        batch = batch.to(_device(self.model))
        captured = capture(self.model, self.points, **batch.model_inputs())
        kept = spliced_mask(batch, captured[0], self.policy)
        rows = torch.cat([x[kept] for x in captured], dim=-1).float()
        if not bool(torch.isfinite(rows).all()):
            raise TrainingError(
                f"The model's activations at {self.points[0].path} are not finite. "
                "A dictionary cannot be trained on NaN or Inf. Load the model in bfloat16 or float32."
            )
        return rows

    def describe(self) -> dict[str, Any]:
        """Return where the text comes from."""
        return self.source.describe()


def joined(x: object, y: object) -> Float[Tensor, "n width"]:
    """Return activations as flat rows, those to read and those to reconstruct side by side.

    Raises:
        InvalidType: for what is no tensor of floats.
        InvalidValue: for shapes that do not fit, no rows, NaN or Inf.
    """
    flat = []
    for tensor in (x, y):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise InvalidType(f"Activations of type {_kind(tensor)} cannot be read. Expected tensors of floats.")
        if tensor.ndim < 2 or not tensor.numel():
            raise InvalidValue(f"Activations of shape {list(tensor.shape)} hold no rows. Expected [..., d_in].")
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidValue("The activations hold NaN or Inf. All must be finite. Leave those rows out.")
        flat.append(tensor.detach().reshape(-1, tensor.shape[-1]).float())
    if len(flat) > 1 and len(flat[0]) != len(flat[1]):
        raise InvalidValue(f"x has {len(flat[0])} rows and y {len(flat[1])}. Each x needs its y.")
    return torch.cat(flat, dim=1) if len(flat) > 1 else flat[0]


def _kind(value: object) -> str:
    return f"{type(value).__name__} ({value.dtype})" if isinstance(value, Tensor) else type(value).__name__


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
