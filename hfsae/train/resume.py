"""A run as a `RunState`, and back: weights, optimizer, clocks, ring, random states, positions and settings."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfsae.train.calibration import Scales
from hfsae.train.checkpoints import RunState, refuse_changes

if TYPE_CHECKING:
    from hfsae.train.trainer import Trainer


def run_state(trainer: "Trainer") -> RunState:
    """Return all of a run that `restore` needs to go on exactly."""
    ring = trainer.ring.state()
    tensors = {
        **_prefixed("recipe", trainer.stepper.recipe.state_dict()),
        **_prefixed("dead", trainer.stepper.dead.state_dict()),
        **_prefixed("ring", ring["tensors"]),
        **_optimizer_tensors(trainer),
        "generator": trainer.stepper.generator.get_state(),
        "coefficient": trainer.stepper.coefficient,
    }
    if trainer.stepper.dead_ids is not None:
        tensors["dead_ids"] = trainer.stepper.dead_ids
    numbers = {
        "step": trainer.step,
        "tokens": trainer.tokens,
        "scales": [trainer.scales.x, trainer.scales.y],
        "ring": ring["numbers"],
        "settings": settings(trainer),
    }
    return RunState(tensors, numbers)


def restore(trainer: "Trainer", state: RunState) -> None:
    """Bring a run that has not begun to where another one with the same settings stood.

    Raises: TrainingError: when the settings differ, naming each.
    """
    assert trainer.checkpoints is not None
    refuse_changes(state.numbers["settings"], settings(trainer), trainer.checkpoints.folder)
    device = trainer.stepper.recipe.W_dec.device
    trainer.stepper.recipe.load_state_dict(_under("recipe", state.tensors))
    trainer.stepper.dead.load_state_dict(_under("dead", state.tensors))
    trainer.ring.restore({"tensors": _under("ring", state.tensors), "numbers": state.numbers["ring"]})
    _restore_optimizer(trainer, state.tensors)
    trainer.stepper.generator.set_state(state.tensors["generator"])
    trainer.stepper.coefficient = state.tensors["coefficient"].to(device)
    trainer.stepper.dead_ids = state.tensors["dead_ids"].to(device) if "dead_ids" in state.tensors else None
    trainer.scales = Scales(*state.numbers["scales"])
    trainer.stepper.step, trainer.tokens = state.numbers["step"], state.numbers["tokens"]


def settings(trainer: "Trainer") -> dict[str, Any]:
    """Return what a run must have in common with the one it goes on from."""
    place = trainer.place.to_dict()
    return {
        "config": trainer.config.to_dict(),
        "place": {name: value for name, value in place.items() if value is not None},
        "data": trainer.ring.rows.describe(),
        "capacity": trainer.ring.capacity,
    }


def _optimizer_tensors(trainer: "Trainer") -> dict[str, Tensor]:
    named = {}
    for name, parameter in trainer.stepper.recipe.named_parameters():
        for key, value in trainer.stepper.optimizer.state.get(parameter, {}).items():
            named[f"optimizer.{name}.{key}"] = value
    return named


def _restore_optimizer(trainer: "Trainer", tensors: dict[str, Tensor]) -> None:
    for name, parameter in trainer.stepper.recipe.named_parameters():
        saved = _under(f"optimizer.{name}", tensors)
        if saved:
            moments = {key: value.to(parameter.device) for key, value in saved.items()}
            trainer.stepper.optimizer.state[parameter] = moments


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": torch.as_tensor(tensor) for name, tensor in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
