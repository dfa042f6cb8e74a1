"""Encode and decode without ever holding ``[tokens, d_sae]``; exact, and differentiable.

Scan (x to the few features that fire):
1. The product ``x W_enc^T + bias`` is made in tiles of about 16 MB, which stay in cache and are used up at once.
2. Within a tile, features are put in strided groups. The k largest entries of a row lie in the k groups with the
   largest maxima (those k maxima are no smaller than anything in another group); likewise only a group whose maximum
   passes its smallest threshold can hold a feature that fires. So one pass of maxima leaves few candidates.
3. Candidates of the tiles are merged.

Decode sums the rows of W_dec that fired, weighted, as an embedding bag. Gradients take the same sparse route: the
gradient of a value is the product of two rows at its index alone, that of a weight row is the sum over the tokens on
which it fired.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from hfsae.sae.products import affine
from hfsae.shapes import DecoderWeight, EncoderWeight, FeatureVector, FlatActivation

_TILE_BYTES = 16 * 2**20
_TOKENS_PER_TILE = 512
_BEYOND_SHARE = 1.25
_MOST_IN_GROUP = 16
_MANY_GROUPS = 0.25
"""Above this fraction of groups that pass, looking at every entry is cheaper."""
_DENSE_FROM = 0.05
"""Above this fraction of rows summed per token, a dense product is cheaper than gathering."""


def topk_scan(
    x: FlatActivation, W_enc: EncoderWeight, bias: FeatureVector, k: int, *, ordered: bool = True
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """Return the k largest pre-activations of each token, zero where they are not above zero, and their features.

    Args: ordered: Largest first; else in any order, which is faster.
    Shape: x: ``[tokens, d_in]``, dtype of W_enc. returns: values and indices ``[tokens, k]``.
    """
    with torch.no_grad():
        parts = [_topk_of_tokens(part, W_enc, bias, k, ordered) for part in torch.split(x, _TOKENS_PER_TILE)]
        values = torch.cat([v for v, _ in parts]) if parts else x.new_zeros(0, k)
        indices = torch.cat([i for _, i in parts]) if parts else x.new_zeros(0, k, dtype=torch.int64)
    if _needs_grad(x, W_enc, bias):
        values = preactivations_at(x, W_enc, bias, values, indices)
    return values, indices


@torch.no_grad()
def batch_topk_scan(
    x: FlatActivation, W_enc: EncoderWeight, bias: FeatureVector, count: int
) -> tuple[Float[Tensor, "count"], Int[Tensor, "count"], Int[Tensor, "count"]]:
    """Return the largest pre-activations of all tokens together, their features, and their tokens in order.

    Exact where no tile of 512 tokens holds more than a quarter above its share of them; what is beyond is left out.

    Shape: x: ``[tokens, d_in]``. returns: values (0 where not above 0), indices, tokens ``[count]``, or as many as
        there are.
    """
    found = []
    for start in range(0, len(x), _TOKENS_PER_TILE):
        part = x[start : start + _TOKENS_PER_TILE]
        share = count if len(part) == len(x) else math.ceil(_BEYOND_SHARE * count * len(part) / len(x))
        for tile in _tiles(len(part), len(W_enc), W_enc.element_size()):
            z = affine(part, W_enc[tile], bias[tile])
            values, places = _top(z.view(1, -1), min(share, z.numel()), ordered=False)
            found.append((values[0], places[0] % z.shape[1] + tile.start, places[0] // z.shape[1] + start))
    values, indices, tokens = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = values.topk(min(count, len(values)), sorted=False).indices
    kept = kept[tokens[kept].argsort()]
    return values[kept].relu_(), indices[kept], tokens[kept]


def threshold_scan(
    x: FlatActivation, W_enc: EncoderWeight, bias: FeatureVector, threshold: FeatureVector | None
) -> tuple[Float[Tensor, "nnz"], Int[Tensor, "nnz"], Int[Tensor, "offsets"]]:
    """Return the pre-activations above ``max(threshold, 0)``, their features, and where each token's begin.

    The comparison is strict and, for weights of lower precision, in fp32 (the threshold is kept in fp32).

    Shape: x: ``[tokens, d_in]``. returns: values, indices ``[nnz]``, by token then feature; offsets ``[tokens + 1]``.
    """
    with torch.no_grad():
        floor = W_enc.new_zeros(len(W_enc)) if threshold is None else threshold.clamp(min=0)
        found = [_above_of_tokens(part, W_enc, bias, floor) for part in torch.split(x, _TOKENS_PER_TILE)]
        values = torch.cat([v for v, _, _ in found]) if found else x.new_zeros(0)
        indices = torch.cat([i for _, i, _ in found]) if found else x.new_zeros(0, dtype=torch.int64)
        counts = torch.cat([c for _, _, c in found]) if found else x.new_zeros(0, dtype=torch.int64)
        offsets = functional.pad(counts.cumsum(0), (1, 0))
    if _needs_grad(x, W_enc, bias):
        values = preactivations_at(x, W_enc, bias, values, indices, offsets)
    return values, indices, offsets


def gather_decode(
    values: Float[Tensor, "*n"],
    indices: Int[Tensor, "*n"],
    W_dec: DecoderWeight,
    bias: Float[Tensor, "d_write"] | None,
    offsets: Int[Tensor, "offsets"] | None = None,
) -> Float[Tensor, "tokens d_write"]:
    """Return ``sum_j values[j] * W_dec[indices[j]] + bias`` per token, reading only those rows.

    Shape: values, indices: ``[tokens, k]``, or ``[nnz]`` with offsets ``[tokens + 1]``.
    """
    if offsets is None:
        offsets = torch.arange(len(values) + 1, device=values.device) * values.shape[1]
    if _needs_grad(values, W_dec):
        out: Tensor = _GatherDecode.apply(values.flatten(), indices.flatten(), offsets, W_dec)  # type: ignore[no-untyped-call]
    else:
        out = _weighted_bags(W_dec, indices.flatten(), offsets, values.flatten())
    return out if bias is None else out + bias


def preactivations_at(  # noqa: PLR0913 - the pre-activations, and all they are made of
    x: FlatActivation,
    W_enc: EncoderWeight,
    bias: FeatureVector,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor | None = None,
    centre: Float[Tensor, "d_in"] | None = None,
) -> Tensor:
    """Return ``values`` as the differentiable pre-activations of those features that they are, on x less its centre.

    A value of 0 stands for a feature that did not fire and passes no gradient. The centre's own gradient takes one
    product with W_enc, and x less it is not kept.
    """
    if offsets is None:
        offsets = torch.arange(len(values) + 1, device=values.device) * values.shape[1]
    flat = _Selected.apply(x, W_enc, bias, centre, values.flatten(), indices.flatten(), offsets)  # type: ignore[no-untyped-call]
    return flat.view(values.shape)  # type: ignore[no-any-return]


def sparse_weight_gradient(
    weights: Float[Tensor, "nnz"],
    indices: Int[Tensor, "nnz"],
    tokens: Int[Tensor, "nnz"],
    source: Float[Tensor, "tokens d"],
    d_sae: int,
) -> Float[Tensor, "d_sae d"]:
    """Return, for each feature i, the sum of ``weights[j] * source[tokens[j]]`` over the entries j of that feature.

    The gradient of W_enc (source x) and of W_dec (source the gradient of x_hat): each feature is a bag of tokens.
    """
    ordered, order = indices.sort()
    offsets = torch.searchsorted(ordered, torch.arange(d_sae + 1, device=indices.device))
    return _weighted_bags(source, tokens[order], offsets, weights[order])


def products_at(
    left: Float[Tensor, "tokens d"],
    weight: Float[Tensor, "d_sae d"],
    indices: Int[Tensor, "nnz"],
    offsets: Int[Tensor, "offsets"],
) -> Float[Tensor, "nnz"]:
    """Return ``left[token of j] . weight[indices[j]]`` for each entry j, and no other entry of the product."""
    # The gradient of an embedding bag with respect to its per-sample weights is exactly this product.
    tokens = token_of_entry(offsets, len(indices))
    out: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left.contiguous(), weight, indices, offsets, tokens, 0, -1
    )
    return out


def token_of_entry(offsets: Int[Tensor, "offsets"], entries: int) -> Int[Tensor, "nnz"]:
    """Return the token of each entry, given where each token's entries begin."""
    tokens = torch.arange(len(offsets) - 1, device=offsets.device)
    return tokens.repeat_interleave(offsets.diff(), output_size=entries)


class _GatherDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, indices, offsets, W_dec):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(values, indices, offsets, W_dec)
        return _weighted_bags(W_dec, indices, offsets, values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        values, indices, offsets, W_dec = ctx.saved_tensors
        d_values = d_weight = None
        if ctx.needs_input_grad[0]:
            d_values = products_at(grad, W_dec, indices, offsets)
        if ctx.needs_input_grad[3]:
            tokens = token_of_entry(offsets, len(indices))
            d_weight = sparse_weight_gradient(values, indices, tokens, grad, len(W_dec))
        return d_values, None, None, d_weight


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W_enc, bias, centre, values, indices, offsets):  # type: ignore[no-untyped-def]  # noqa: PLR0913
        ctx.save_for_backward(x, W_enc, centre, values, indices, offsets)
        return values.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, W_enc, centre, values, indices, offsets = ctx.saved_tensors
        grad = grad * (values != 0)
        d_x = d_weight = d_centre = None
        d_bias = grad.new_zeros(len(W_enc)).index_add(0, indices, grad)
        if ctx.needs_input_grad[0]:
            d_x = _weighted_bags(W_enc, indices, offsets, grad)
        if ctx.needs_input_grad[1]:
            tokens = token_of_entry(offsets, len(indices))
            d_weight = sparse_weight_gradient(grad, indices, tokens, x, len(W_enc))
            if centre is not None:
                d_weight.addr_(d_bias, centre, alpha=-1)
        if ctx.needs_input_grad[3]:
            d_centre = -(d_bias @ W_enc)
        return d_x, d_weight, d_bias, d_centre, None, None, None


def _weighted_bags(weight: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    bags = len(offsets) - 1
    if not len(indices):
        return weight.new_zeros(bags, weight.shape[1])
    weights = weights.to(weight.dtype)
    if len(indices) > _DENSE_FROM * bags * len(weight):
        return _dense_bags(weight, indices, offsets, weights)
    return functional.embedding_bag(
        indices, weight, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def _dense_bags(weight: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """As a product of dense tiles: cheaper where a good part of the rows is summed in every bag."""
    step = max(_TILE_BYTES // (len(weight) * weight.element_size()), 1)
    out = weight.new_empty(len(offsets) - 1, weight.shape[1])
    for start in range(0, len(out), step):
        part = offsets[start : start + step + 1]
        mine = slice(int(part[0]), int(part[-1]))
        bag = token_of_entry(part, mine.stop - mine.start)
        dense = weight.new_zeros((len(part) - 1) * len(weight))
        dense.index_add_(0, bag * len(weight) + indices[mine], weights[mine])
        out[start : start + step] = dense.view(len(part) - 1, -1) @ weight
    return out


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _tiles(tokens: int, d_sae: int, itemsize: int) -> Iterator[slice]:
    width = max(_TILE_BYTES // (itemsize * max(tokens, 1)), 1024)
    return (slice(start, min(start + width, d_sae)) for start in range(0, d_sae, width))


def _topk_of_tokens(x: Tensor, W_enc: Tensor, bias: Tensor, k: int, ordered: bool) -> tuple[Tensor, Tensor]:
    best: tuple[Tensor, Tensor] | None = None
    for tile in _tiles(len(x), len(W_enc), W_enc.element_size()):
        z = affine(x, W_enc[tile], bias[tile])
        values, indices = _top(z, min(k, z.shape[1]), ordered)
        indices = indices + tile.start
        if best is not None:
            values, indices = torch.cat([best[0], values], 1), torch.cat([best[1], indices], 1)
            values, place = values.topk(min(k, values.shape[1]), dim=1, sorted=ordered)
            indices = indices.gather(1, place)
        best = values, indices
    assert best is not None
    return best[0].relu(), best[1]


def _top(z: Tensor, k: int, ordered: bool) -> tuple[Tensor, Tensor]:
    """Exact top-k in two stages: the k groups with the largest maxima, then the k largest entries of those."""
    size = _group_size(z.shape[1], k)
    if size == 1:
        return tuple(z.topk(k, dim=1, sorted=ordered))  # type: ignore[return-value]
    groups = z.shape[1] // size
    maxima = z[:, : groups * size].view(len(z), size, groups).amax(1)
    chosen = maxima.topk(k, dim=1, sorted=False).indices
    steps = torch.arange(0, size * groups, groups, device=z.device)
    places = (chosen.unsqueeze(2) + steps).flatten(1)
    if groups * size < z.shape[1]:
        rest = torch.arange(groups * size, z.shape[1], device=z.device)
        places = torch.cat([places, rest.expand(len(z), -1)], 1)
    values, order = z.gather(1, places).topk(k, dim=1, sorted=ordered)
    return values, places.gather(1, order)


def _group_size(width: int, k: int) -> int:
    """Members per group: near sqrt(width / k) both stages cost least; 1 where one plain top-k is as cheap."""
    size = 2 ** int(math.log2(max(math.sqrt(width / k), 1)))
    return min(size, _MOST_IN_GROUP) if width // size >= k else 1


def _above_of_tokens(x: Tensor, W_enc: Tensor, bias: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found = []
    for tile in _tiles(len(x), len(W_enc), W_enc.element_size()):
        tokens, places, values = _above(affine(x, W_enc[tile], bias[tile]), floor[tile])
        found.append((tokens, places + tile.start, values))
    tokens, indices, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    if len(found) > 1:
        tokens, order = tokens.sort(stable=True)  # tiles are in the order of features already
        indices, values = indices[order], values[order]
    return values, indices, torch.bincount(tokens, minlength=len(x))


def _above(z: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (token, place, value) of the entries above their floor, by token then place."""
    groups = max(z.shape[1] // _MOST_IN_GROUP, 1)
    size = min(_MOST_IN_GROUP, z.shape[1])
    cut = groups * size
    maxima = z[:, :cut].view(len(z), size, groups).amax(1)
    lowest = floor[:cut].view(size, groups).amin(0)
    passes = _above_floor(maxima, lowest)
    if int(passes.sum()) > _MANY_GROUPS * passes.numel():
        tokens, places = _above_floor(z, floor).nonzero(as_tuple=True)
        return tokens, places, z[tokens, places]
    tokens, group = passes.nonzero(as_tuple=True)
    steps = torch.arange(0, cut, groups, device=z.device)
    tokens, places = tokens.repeat_interleave(size), (group.unsqueeze(1) + steps).flatten()
    rest = _above_floor(z[:, cut:], floor[cut:]).nonzero(as_tuple=True)
    tokens, places = torch.cat([tokens, rest[0]]), torch.cat([places, rest[1] + cut])
    values = z[tokens, places]
    keep = _above_floor(values, floor[places])
    tokens, places, values = tokens[keep], places[keep], values[keep]
    order = (tokens * z.shape[1] + places).argsort()
    return tokens[order], places[order], values[order]


def _above_floor(z: Tensor, floor: Tensor) -> Tensor:
    # Not `>`: a NaN passes too, so that an activation of NaN is never taken for one on which nothing fires.
    return (z <= floor).logical_not_()
