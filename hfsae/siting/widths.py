"""How wide the activation at a module is, without a forward of the model."""

from torch import nn

from hfsae.siting.proofs import StackProof
from hfsae.siting.stacks import Stack, owner

_WIDTH_NAMES = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim", "embedding_size")


def stream_width(model: nn.Module, stack: Stack, proof: StackProof) -> int | None:
    """Return the width of a stack's residual stream: what its config calls the width that the probe's stream had."""
    config = owner(model, stack.path)[1]
    small = proof.config
    for part in (small, *(vars(small).values() if small is not None else ())):
        for name in _WIDTH_NAMES:
            if type(part) is type(config) and proof.width is not None and getattr(part, name, None) == proof.width:
                size = getattr(config, name, None)
                return size if isinstance(size, int) else None
    return None


def declared_width(module: nn.Module, io: str) -> int | None:
    """Return the width that a linear map or a norm declares for its input or output, None for other modules."""
    for name in ("in_features", "nx") if io == "input" else ("out_features", "nf"):
        size = getattr(module, name, None)
        if isinstance(size, int):
            return size
    weight = getattr(module, "weight", None)
    if isinstance(weight, nn.Parameter) and weight.dim() == 1 and not list(module.children()):
        return weight.shape[0]
    # transformers' Conv1D, [in, out], declares its output alone
    is_conv1d = isinstance(weight, nn.Parameter) and weight.dim() == 2 and hasattr(module, "nf")
    return weight.shape[0] if is_conv1d and weight is not None else None
