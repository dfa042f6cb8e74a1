"""Toy models of superposition and synthetic worlds whose true features are known."""

from hfsae.toy.basis import optimizer_privileges, site_privileges
from hfsae.toy.closed_form import antipodal_pair, interference, linear_loss, phase_boundary, polygon
from hfsae.toy.comparison import compare_with_controls, text_samples, world_samples
from hfsae.toy.geometry import dimensionality, gaps, measured_interference, shape
from hfsae.toy.model import ToyConfig, ToyModel, one_active, sparse_inputs, train_toys
from hfsae.toy.phases import holding, phase_grid, settle
from hfsae.toy.recovery import RecoveryScores, recovery
from hfsae.toy.sweep import recovery_sweep
from hfsae.toy.worlds import World

__all__ = [
    "RecoveryScores",
    "ToyConfig",
    "ToyModel",
    "World",
    "antipodal_pair",
    "compare_with_controls",
    "dimensionality",
    "gaps",
    "holding",
    "interference",
    "linear_loss",
    "measured_interference",
    "one_active",
    "optimizer_privileges",
    "phase_boundary",
    "phase_grid",
    "polygon",
    "recovery",
    "recovery_sweep",
    "settle",
    "shape",
    "site_privileges",
    "sparse_inputs",
    "text_samples",
    "train_toys",
    "world_samples",
]
