"""Toy models of superposition and synthetic worlds whose true features are known."""

from hfsae.toy.recovery import RecoveryScores, recovery
from hfsae.toy.worlds import World

__all__ = ["RecoveryScores", "World", "recovery"]
