"""How the learning rate, and a sparsity coefficient, move over a run: pure functions of the step."""

from torch import Tensor


def learning_rate_factor(step: int, steps: int, warmup: float, decay: float) -> float:
    """Return what the learning rate is multiplied by at a step: up over the first share, flat, down over the last.

    Example:
        >>> [learning_rate_factor(step, 10, warmup=0.2, decay=0.5) for step in (0, 1, 4, 5, 9)]
        [0.5, 1.0, 1.0, 1.0, 0.2]
    """
    rise = max(round(warmup * steps), 1)
    fall = max(round(decay * steps), 1)
    return min((step + 1) / rise, (steps - step) / fall, 1.0)


def controlled(coefficient: Tensor, l0: Tensor, target: float, gain: float) -> Tensor:
    """Return a sparsity coefficient moved towards the one that holds L0 at its target.

    Multiplied by ``(l0 / target) ** gain``, at most doubled or halved: too many firing raises it, too few lowers it.
    """
    ratio = (l0.clamp(min=1e-6) / target) ** gain
    return coefficient * ratio.clamp(0.5, 2.0)
