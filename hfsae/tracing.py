"""What nnsight needs of an attachment; nothing here imports nnsight, which leaves its marks on the modules it wraps.

nnsight reaches any ``nn.Module`` attribute of a module, so ``lm.transformer.h[8].sae.features.output`` works in a trace
by itself. Left to do: load a model that was only declared, refuse remote runs, forget the view of a detached mount.
"""

import functools
import sys
from typing import Any

from torch import nn

from hfsae.attaching.mount import Mount
from hfsae.errors import Unsupported
from hfsae.siting.stacks import is_envoy, unwrap

_STATE = "__nnsight__"


def dispatch(model: object) -> None:
    """Load the weights of an nnsight model that was only declared; what is attached before would be lost."""
    if is_envoy(model) and getattr(model, "dispatched", True) is False:
        model.dispatch()  # type: ignore[attr-defined]


def guard_remote() -> None:
    """Make remote runs of models that carry a dictionary an error: the server's copy of the model has none.

    Does nothing before nnsight is imported, so it is called where edits begin, too.
    """
    remotable = getattr(sys.modules.get("nnsight.modeling.mixins.remotable"), "Remotable", None)
    if remotable is None or hasattr(remotable._remote_backend, "__wrapped__"):
        return
    original = remotable._remote_backend

    @functools.wraps(original)
    def guarded(model: object, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(p, Mount) for module in unwrap(model).modules() for p in (module, *vars(module).values())):
            raise Unsupported(
                "remote=True cannot work with a dictionary attached, which the remote model does not have. "
                "A local run was expected. Leave out remote=, or detach first."
            )
        return original(model, *args, **kwargs)

    remotable._remote_backend = guarded


def forget_envoys(module: nn.Module, name: str) -> None:
    """Drop nnsight's views of the mount at ``module.name``; the next one mounted there must not be mistaken for it."""
    mount = vars(module).get(name) or module._modules.get(name)
    state = vars(module).get(_STATE)
    for reference, _path, _locations in [] if state is None else list(state.routes):
        interleaver = reference()
        parent = None if interleaver is None else interleaver.envoys.get(id(module))
        if parent is None:
            continue
        view = vars(parent).pop(name, None)
        if view is None or mount is None:
            continue
        parent._children[:] = [child for child in parent._children if child is not view]
        for part in mount.modules():
            interleaver.envoys.pop(id(part), None)
