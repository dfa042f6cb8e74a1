"""Write constant steering into a bias that the model already has, so that it runs without this package."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hfsae.attaching.attachment import Attachment, attachments
from hfsae.attaching.edits import Edit, Part
from hfsae.errors import InvalidValue, Unsupported
from hfsae.hooks import capture
from hfsae.interventions import Add, Push
from hfsae.sites import unwrap

_CLOSE = 1e-5


def bake(model: Any, edit: Edit) -> list[str]:
    """Add a constant steering edit to biases of the model, in place, and return their names.

    The bias is found by trying: it must move the activation at the site by the vector and by nothing else. The model
    computes what it computes under the edit, to rounding; save it with its own ``save_pretrained``.

    Raises:
        Unsupported: when the edit does not steer all tokens alike, or the model has no such bias; nothing changes.
        InvalidValue: when the edit is for another model.
    """
    attached = {id(att.mount): att for att in attachments(model)}
    vectors = []
    for part in edit.parts:
        if id(part.mount) not in attached:
            raise InvalidValue(f"{part.text} is for another model. An edit of this model was expected.")
        vectors.append((attached[id(part.mount)], _constant(part)))
    changed: list[tuple[str, Tensor, Tensor]] = []
    for att, vector in vectors:
        name, bias = _bias_for(att, vector) or (None, None)
        if name is None or bias is None:
            for _, moved, before in changed:
                moved.data.copy_(before)
            raise Unsupported(
                f"No bias at {att.module_path} adds a constant to {att.write_point.site} exactly. A layer that ends in "
                "a linear map with a bias was expected. Apply the edit instead: edit.apply()."
            )
        changed.append((name, bias, bias.detach().clone()))
        bias.data.add_(vector.to(bias))
    return [name for name, _, _ in changed]


def _constant(part: Part) -> Tensor:
    change, sae = part.intervention, part.mount.dictionary
    constant = isinstance(change, Add | Push) and change.where.selects_all and not change.has_row_values
    if not constant or (isinstance(change, Add) and (change.when is not None or sae.config.normalize == "layer_norm")):
        raise Unsupported(f"{part.text} is not the same for every token. Only constant steering becomes a bias.")
    if isinstance(change, Push):
        return change.vector
    assert isinstance(change, Add)
    amount = change.amount.float().expand(len(change.features)).to(sae.W_dec.device)
    scale = sae.config.scale or 1.0 if not sae.config.is_transcoder else 1.0
    return (amount @ sae.W_dec[sae.rows(change.features)].detach().float()) / scale


def _bias_for(att: Attachment, vector: Tensor) -> tuple[str, Tensor] | None:
    """Return the bias that moves the written activation by ``vector``, the last one first."""
    before = _activation(att)
    wanted = before + vector.to(before)
    for name, bias in _biases(att):
        kept = bias.detach().clone()
        bias.data.add_(vector.to(bias))
        after = _activation(att)
        bias.data.copy_(kept)
        if torch.allclose(after, wanted, rtol=_CLOSE, atol=_CLOSE * float(wanted.abs().max())):
            return name, bias
    return None


def _biases(att: Attachment) -> Iterator[tuple[str, nn.Parameter]]:
    named = list(att.write_point.module.named_parameters())
    for name, parameter in reversed(named):
        if name.rpartition(".")[2] == "bias" and parameter.shape == (att.dictionary.config.d_write,):
            yield f"{att.module_path}.{name}".lstrip("."), parameter


def _activation(att: Attachment) -> Tensor:
    root = unwrap(att.model)
    device = next(root.parameters()).device
    inputs = {name: value.to(device) for name, value in root.dummy_inputs.items()}  # type: ignore[operator,union-attr]
    return capture(att.model, [att.write_point], **inputs)[0].float()
