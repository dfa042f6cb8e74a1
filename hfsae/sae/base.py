"""`SparseCoder`: a dictionary as a module, one class for every architecture, for training and for inference.

    f     = activation_fn(W_enc (n(x) - b_pre) + b_enc)      n: nothing, a scale, or layer norm per token
    x_hat = undo_n(f W_dec + b_dec) + W_skip x               n is undone where it writes what it reads

What `activation_fn` is follows from the architecture's kind (`hfsae.sae.architectures`). Nothing is cached: what could
be folded once (b_pre into the bias) costs one part in d_sae of the product, and a cache that missed an edit would lie.
"""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hfsae.errors import InvalidValue, OutOfRange, Unsupported
from hfsae.sae import coding
from hfsae.sae.config import SAEConfig
from hfsae.sae.sparse import FeatureList, SparseFeatures, feature_ids
from hfsae.sae.statistics import FeatureStatistics, Label
from hfsae.shapes import Activation, Features, PreActivations, Written

_OPTIONAL = ("b_pre", "threshold", "W_skip")


class SparseCoder(nn.Module):
    """A dictionary: encoder, activation function and decoder.

    Arithmetic is in the dictionary's own dtype whatever autocast says; results come back in the dtype of what came in.

    Args:
        config: What it is. Parameters are initialised at random: unit decoder rows, the encoder equal to them.
        features: Ids of the rows it holds, when it is a slice of a larger dictionary.
        tensors: Its parameters by name, used as they are instead of random ones; checked by who read them.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_pre: Tensor | None
    threshold: Tensor | None
    W_skip: Tensor | None

    def __init__(
        self, config: SAEConfig, *, features: Tensor | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.features = features
        self.statistics: FeatureStatistics | None = None
        self.labels: dict[int, Label] = {}
        for name, shape in parameter_shapes(config, None if features is None else len(features)).items():
            dtype = torch.float32 if name == "threshold" else getattr(torch, config.dtype)
            value = torch.empty(shape, dtype=dtype) if tensors is None else tensors[name]
            self.register_parameter(name, nn.Parameter(value))
        for name in _OPTIONAL:
            if name not in self._parameters:
                self.register_parameter(name, None)
        if tensors is None:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew: decoder rows of unit length, the encoder equal to them, all else zero."""
        for parameter in self.parameters():
            parameter.zero_()
        self.W_dec.normal_()
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-8))
        if self.config.d_write == self.config.d_in:
            self.W_enc.copy_(self.W_dec)
        else:
            self.W_enc.normal_(std=self.config.d_in**-0.5)

    @property
    def kind(self) -> str:
        """How it encodes: "thresholded", "topk" or "sequential"."""
        return self.config.row.kind

    def encode(self, x: Activation, features: FeatureList | None = None) -> Features:
        """Return the feature activations of x.

        Args: features: Only these, in this order. A thresholded dictionary then pays for them alone; a top-k dictionary
            has to look at all, since which of them win depends on the others.
        Shape: x: ``[..., d_in]``, any float dtype.  returns: ``[..., d_sae]`` (or ``[..., n]``), >= 0, dtype of x; of a
            slice, one column per row it holds.
        Raises:
            InvalidValue: when x has another width.
            OutOfRange: when there is no such feature.
            Unsupported: when this is a slice of a top-k dictionary.
        """
        rows = None if features is None else self.rows(features)
        _check_encodable(self, x)
        if _is_abstract(x):
            return x.new_empty(*x.shape[:-1], len(self.W_enc) if rows is None else len(rows))
        if self.kind != "thresholded":
            sparse = self.encode_sparse(x)
            return _tag(sparse.to_dense() if features is None else sparse.at(features), sparse.mean, sparse.std)
        with _no_autocast(x):
            given = coding.read(self, x)
            f = coding.activate(self, coding.product(self, given.x, rows), rows)
            return _tag(_unflattened(f.to(x.dtype), x), given.mean, given.std)

    def encode_sparse(self, x: Activation) -> SparseFeatures:
        """Return the feature activations of x as values and indices; memory is O(tokens * k), never O(tokens * d_sae).

        Shape: x: ``[..., d_in]``, any float dtype.
        Raises: InvalidValue, Unsupported: as `encode`.
        """
        _check_encodable(self, x)
        leading = tuple(x.shape[:-1])
        if _is_abstract(x):
            return _abstract_codes(self, x)
        with _no_autocast(x):
            given = coding.read(self, x)
            values, ids, offsets = coding.encode_flat(self, given.x)
        if self.features is not None:
            ids = self.features.to(ids.device)[ids]
        if offsets is None:
            values, ids = _unflattened(values, x), _unflattened(ids, x)
        return SparseFeatures(values.to(x.dtype), ids, self.config.d_sae, offsets, leading, given.mean, given.std)

    def decode(self, f: Features | SparseFeatures, *, x: Activation | None = None) -> Written:
        """Return the reconstruction that feature activations stand for, in the dtype of f.

        Args: x: The activation they came from: needed for a skip path, and for layer norm when f is a tensor that did
            not come straight from `encode`.
        Raises: InvalidValue: when f has another width, or x is missing where it is needed.
        """
        if isinstance(f, SparseFeatures):
            return _decode_sparse(self, f, x)
        width = len(self.W_dec)
        if not f.is_floating_point() or f.ndim < 1 or f.shape[-1] != width:
            raise InvalidValue(f"f is {f.dtype} {list(f.shape)}. This dictionary decodes floats [..., {width}].")
        if _is_abstract(f):
            return f.new_empty(*f.shape[:-1], self.config.d_write)
        mean, std = getattr(f, "_hfsae_norm", (None, None))
        with _no_autocast(f):
            x_hat = f.to(self.W_dec.dtype) @ self.W_dec + self.b_dec
            return coding.write(self, x_hat, x, mean, std).to(f.dtype)

    def forward(self, x: Activation) -> Written:
        """Return the reconstruction of x by the fastest exact route.

        Shape: x: ``[..., d_in]``, any float dtype.  returns: ``[..., d_write]``, dtype of x.
        Raises: InvalidValue, Unsupported: as `encode`.
        """
        _check_encodable(self, x)
        if _is_abstract(x):
            return x.new_empty(*x.shape[:-1], self.config.d_write)
        with _no_autocast(x):
            given = coding.read(self, x)
            x_hat = _unflattened(coding.reconstruct_flat(self, given.x), x)
            return coding.write(self, x_hat, x, given.mean, given.std).to(x.dtype)

    def preactivations(self, x: Activation, features: FeatureList | None = None) -> PreActivations:
        """Return z, what the activation function is applied to, in the dtype of x (sequential: of its first step)."""
        rows = None if features is None else self.rows(features)
        coding.check_activation(self, x)
        with _no_autocast(x):
            z = coding.product(self, coding.read(self, x).x, rows)
            return _unflattened(z.to(x.dtype), x)

    def directions(self, features: FeatureList) -> Float[Tensor, "n d_write"]:
        """Return the decoder rows of those features."""
        return self.W_dec[self.rows(features)]

    def rows(self, features: FeatureList) -> Tensor:
        """Return the rows that hold those features, on its device: the ids themselves unless it is a slice.

        Raises: OutOfRange: when there is no such feature, or this slice does not hold it.
        """
        ids = feature_ids(features, self.config.d_sae)
        if self.features is not None:
            ids = _rows_of_slice(ids, self.features, self.config.d_sae)
        return ids.to(self.W_dec.device)

    def extra_repr(self) -> str:
        """Return what `print` shows of it."""
        c = self.config
        parts = [c.architecture, f"d_in={c.d_in}", f"d_sae={c.d_sae}", f"k={c.k}" if c.k else "", c.place]
        return ", ".join(part for part in parts if part)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseCoder":
        before = None if self.threshold is None else self.threshold.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if before is not None and self.threshold is not None and self.threshold.dtype.itemsize < 4:
            # A threshold rounded to bf16 flips the features near it: it stays in fp32 whatever the weights are.
            self.threshold.data = before.to(self.threshold.device)
        return self


def parameter_shapes(config: SAEConfig, rows: int | None = None) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of such a dictionary, or of that many rows of it."""
    n = config.d_sae if rows is None else rows
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (n, config.d_in),
        "b_enc": (n,),
        "W_dec": (n, config.d_write),
        "b_dec": (config.d_write,),
    }
    if config.b_pre == "own":
        shapes["b_pre"] = (config.d_in,)
    if config.row.has_threshold:
        shapes["threshold"] = (n,)
    if config.skip:
        shapes["W_skip"] = (config.d_write, config.d_in)
    return shapes


def _check_encodable(coder: SparseCoder, x: object) -> None:
    if coder.features is not None and coder.kind != "thresholded":
        raise Unsupported(
            f"This slice of {len(coder.features)} features cannot encode. Which features of a {coder.kind} dictionary "
            "fire depends on all of them. Load it whole, without features=."
        )
    coding.check_activation(coder, x)


def _decode_sparse(coder: SparseCoder, f: SparseFeatures, x: Tensor | None) -> Tensor:
    if f.d_sae != coder.config.d_sae:
        raise InvalidValue(f"f has {f.d_sae} features. This dictionary has {coder.config.d_sae}. They do not fit.")
    rows = f.indices if f.offsets is not None else f.indices.reshape(f.tokens, f.indices.shape[-1])
    if coder.features is not None:
        rows = _rows_of_slice(rows.cpu(), coder.features, f.d_sae).to(rows.device)
    with _no_autocast(f.values):
        x_hat = coding.decode_flat(coder, coding.Codes(f.values.view_as(rows), rows, f.offsets))
        x_hat = x_hat.view(*f.shape[:-1], coder.config.d_write)
        return coding.write(coder, x_hat, x, f.mean, f.std).to(f.values.dtype)


def _rows_of_slice(ids: Tensor, held: Tensor, d_sae: int) -> Tensor:
    row = torch.full((d_sae,), -1, dtype=torch.int64)
    row[held.cpu()] = torch.arange(len(held))
    rows = row[ids]
    if bool((rows < 0).any()):
        raise OutOfRange(
            f"Feature {int(ids[rows < 0][0])} was not loaded. This slice holds {len(held)} of {d_sae} features. "
            "Name it in features= when loading."
        )
    return rows


def _unflattened(flat: Tensor, x: Tensor) -> Tensor:
    return flat.view(*x.shape[:-1], flat.shape[-1])


def _tag(f: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """Let a dense f carry what decode needs of layer-normalised tokens; arithmetic on f drops it, which decode says."""
    if mean is not None:
        f._hfsae_norm = (mean, std)  # type: ignore[attr-defined]
    return f


def _is_abstract(x: Tensor) -> bool:
    """A tensor with a shape and no numbers (meta, fake): answered with shapes alone, the weights stay put."""
    fake = isinstance(x, torch._subclasses.FakeTensor) and not torch.compiler.is_compiling()  # not one being exported
    return x.is_meta or fake


def _abstract_codes(coder: SparseCoder, x: Tensor) -> SparseFeatures:
    leading, d_sae = tuple(x.shape[:-1]), coder.config.d_sae
    if coder.kind == "topk":
        values = x.new_empty(*leading, coder.config.k or 1)
        return SparseFeatures(values, values.long(), d_sae, None, leading)
    offsets = x.new_zeros(math.prod(leading) + 1, dtype=torch.int64)
    return SparseFeatures(x.new_empty(0), offsets[:0], d_sae, offsets, leading)


def _no_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(device_type=x.device.type, enabled=False)
