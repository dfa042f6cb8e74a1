"""What features do to the output and whom they resemble, from weights alone."""

import torch
from torch import Tensor, nn

from hfsae.errors import InvalidValue

_AT_ONCE = 256


def logit_attribution(model: nn.Module, directions: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Return the tokens that each direction promotes and suppresses: (ids, values) of both, ``[features, most]``.

    A direction goes through the centring and the scale of the final norm (not its division by the norm of the stream)
    and the unembedding, and its mean over tokens is taken off. That is its direct effect: what later blocks make of it
    is left out, so it says much near the end of a model and little at its start.

    Returns: None for a model without an unembedding of that width.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.shape[1] != directions.shape[1]:
        return None
    scale = _final_scale(model, weight.shape[1])
    unembedding = weight.detach().float() * scale
    most = min(most, len(unembedding))
    parts = []
    for block in directions.detach().float().to(weight.device).split(_AT_ONCE):  # type: ignore[no-untyped-call]
        if _centres(model):
            block = block - block.mean(1, keepdim=True)
        logits = block @ unembedding.T
        logits -= logits.mean(1, keepdim=True)
        up, down = logits.topk(most), logits.topk(most, largest=False)
        parts.append((up.indices.cpu(), up.values.cpu(), down.indices.cpu(), down.values.cpu()))
    ids, values, down_ids, down_values = (torch.cat(list(column)) for column in zip(*parts, strict=True))
    return ids, values, down_ids, down_values


def nearest(directions: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the features whose directions have the highest cosine with each: (ids, cosines), ``[features, most]``.

    Raises: InvalidValue: when there is only one feature.
    """
    if len(directions) < 2:
        raise InvalidValue("A dictionary of one feature has no neighbours. Two or more were expected.")
    unit = torch.nn.functional.normalize(directions.detach().float(), dim=1)
    most = min(most, len(unit) - 1)
    ids, values = [], []
    for start in range(0, len(unit), _AT_ONCE):
        cosine = unit[start : start + _AT_ONCE] @ unit.T
        rows = torch.arange(len(cosine))
        cosine[rows, start + rows] = -torch.inf
        best = cosine.topk(most)
        ids.append(best.indices.cpu())
        values.append(best.values.cpu())
    return torch.cat(ids), torch.cat(values)


def _final_norm(model: nn.Module, width: int) -> nn.Module | None:
    """The last norm of the model's body, by the order in which modules are declared."""
    body = getattr(model, "base_model", model)
    norms = [
        child
        for child in body.children()
        if isinstance(getattr(child, "weight", None), Tensor) and child.weight.shape == (width,)
    ]
    return norms[-1] if norms else None


def _final_scale(model: nn.Module, width: int) -> Tensor | float:
    norm = _final_norm(model, width)
    if norm is None:
        return 1.0
    weight: Tensor = norm.weight.detach().float()  # type: ignore[operator]
    # Gemma stores the scale of its norms as a difference from one.
    return weight + 1.0 if "Gemma" in type(norm).__name__ else weight


def _centres(model: nn.Module) -> bool:
    head = model.get_output_embeddings()  # type: ignore[operator]
    return isinstance(_final_norm(model, head.weight.shape[1]), nn.LayerNorm)
