"""`SAELayer`: a module that stands in place of a layer and carries its dictionary with it."""

from dataclasses import replace
from typing import Any

from torch import nn

from hfsae.errors import InvalidType, InvalidValue, Unsupported, did_you_mean
from hfsae.hooks import activation_of_output, with_output
from hfsae.sae.base import SparseCoder
from hfsae.sae.sparse import SparseFeatures

MODES = ("observe", "splice")


class SAELayer(nn.Module):
    """A layer with a dictionary behind it: runs the layer, then observes what it returns or splices it.

    Put it where the layer was: ``model.transformer.h[8] = hfsae.SAELayer(model.transformer.h[8], sae)``. `features`
    holds what the last forward's tokens were made of, and `unwrap` gives the layer back. Unlike `hfsae.attach`, it is
    part of the model: optimizers, `.to()`, `state_dict`, saving see the dictionary (under ``dictionary.``), the names
    of the layer's weights change (to ``module.``), its class is hidden, and there are no edits.

    Args:
        module: The layer; it returns the activation, or a tuple beginning with it.
        sae: The dictionary.
        mode: ``"observe"`` passes the activation on untouched; ``"splice"`` passes on its reconstruction.
    Raises:
        InvalidType: when these are no module and dictionary.
        InvalidValue: when the mode is unknown.
        Unsupported: when it is a transcoder.
    """

    def __init__(self, module: nn.Module, sae: SparseCoder, mode: str = "observe") -> None:
        super().__init__()
        if not isinstance(module, nn.Module) or not isinstance(sae, SparseCoder):
            given = f"{type(module).__name__} and {type(sae).__name__}"
            raise InvalidType(f"SAELayer got {given}. A module and an hfsae.SAE were expected, in this order.")
        if mode not in MODES:
            raise InvalidValue(f"mode={mode!r} is unknown.{did_you_mean(str(mode), MODES)}")
        if sae.config.is_transcoder:
            raise Unsupported("A transcoder reads and writes at two places, a layer is one. Use hfsae.attach.")
        self.module = module
        self.dictionary = sae
        self.mode = mode
        self.features: SparseFeatures | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer returns, with its activation spliced in that mode."""
        output = self.module(*args, **kwargs)
        x = activation_of_output(output, self.module)
        codes = self.dictionary.encode_sparse(x)
        self.features = replace(codes, values=codes.values.detach())
        return output if self.mode == "observe" else with_output(output, self.dictionary.decode(codes, x=x).to(x.dtype))

    def unwrap(self) -> nn.Module:
        """Return the layer as it was."""
        return self.module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":  # half built, as copying and unpickling leave it for a moment
                raise
            # What models look up on their layers, such as `attention_type`, is the layer's own.
            return getattr(super().__getattr__("module"), name)
