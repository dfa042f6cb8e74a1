"""The toy model of superposition: n features through d dimensions and back, with the same weights both ways.

``x_hat = relu(W W.T x + b)``, or the same without the ReLU; the loss is the squared error, weighted by importance,
summed over features. Row i of ``W [n, d]`` is feature i, as everywhere in hfsae; Elhage et al. write its transpose.
Many toys (restarts, cells of a phase diagram) train side by side along leading dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from hfsae.errors import InvalidValue, did_you_mean

OPTIMIZERS: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
}
"""Optimizer name to what builds it. Adam steps in each coordinate by itself; SGD does not know the coordinates."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ToyModel:
    """One toy model, or many side by side.

    Shape: x: ``[*toys, count, n]``. hidden: ``[*toys, count, d]``. call: ``[*toys, count, n]``.
    Example:
        >>> pair = ToyModel(W=torch.tensor([[1.0], [-1.0]]), b=torch.zeros(2))
        >>> pair(torch.eye(2))
        tensor([[1., 0.],
                [0., 1.]])

    Source: Elhage et al. 2022, "Toy models of superposition", arXiv:2209.10652.
    """

    W: Float[Tensor, "*toys n d"]
    """Row i is the direction of feature i."""
    b: Float[Tensor, "*toys n"]
    """Added before the ReLU."""
    relu: bool = True
    """False: the linear model."""

    def hidden(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*out d"]:
        """Return the d numbers that are left of each input."""
        return x @ self.W

    def __call__(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*out n"]:
        """Return the reconstruction of x."""
        z = self.hidden(x) @ self.W.mT + self.b.unsqueeze(-2)
        return z.relu() if self.relu else z

    def loss(
        self, x: Float[Tensor, "*batch n"], importance: Float[Tensor, "*weights n"] | None = None
    ) -> Float[Tensor, "*toys"]:
        """Return the squared error, summed over features and averaged over the samples of each toy.

        Args:
            x: Inputs; `one_active(n)` makes this the mean over features.
            importance: Weight of each feature's error; default 1.
        """
        error = (x - self(x)).square()
        if importance is not None:
            error = error * importance.unsqueeze(-2)
        return error.sum(dim=-1).mean(dim=-1)

    def best(self, x: Float[Tensor, "*batch n"], importance: Float[Tensor, " n"] | None = None) -> "ToyModel":
        """Return the one toy of lowest loss on x, out of toys ``[toys, n, d]``."""
        winner = int(self.loss(x, importance).argmin())
        return ToyModel(W=self.W[winner], b=self.b[winner], relu=self.relu)


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """What to train: the size of the toys and how."""

    n: int
    """Features."""
    d: int
    """Dimensions between."""
    toys: int = 1
    """How many train side by side, each from its own random start."""
    relu: bool = True
    """False: the linear model."""
    bias: bool = True
    """False: b stays 0."""
    steps: int = 1000
    """Optimizer steps."""
    learning_rate: float = 0.01
    """At the start; falls to 0 along a half cosine."""
    optimizer: str = "adam"
    """One of `OPTIMIZERS`."""
    seed: int = 0
    """Of the start and of the inputs."""

    def __post_init__(self) -> None:
        if min(self.n, self.d, self.toys, self.steps) < 1:
            sizes = f"n={self.n}, d={self.d}, toys={self.toys}, steps={self.steps}"
            raise InvalidValue(f"{sizes} make no toy. Each is at least 1. Raise the one that is 0.")
        if self.optimizer not in OPTIMIZERS:
            raise InvalidValue(f"There is no optimizer {self.optimizer!r}.{did_you_mean(self.optimizer, OPTIMIZERS)}")


def one_active(n: int) -> Float[Tensor, "n n"]:
    """Return the n inputs with one feature at 1 and the others at 0."""
    return torch.eye(n)


def sparse_inputs(
    count: int, n: int, density: float | Float[Tensor, " toys"], generator: Generator
) -> Float[Tensor, "toys count n"]:
    """Draw inputs whose features are active independently, each with a value uniform in [0, 1].

    Args:
        count: Samples for each toy.
        n: Features.
        density: Probability that a feature is active (1 - sparsity), for all toys or for each.
        generator: Source of the draw.
    """
    density = torch.as_tensor(density).view(-1, 1, 1)
    shape = (len(density), count, n)
    active = torch.rand(shape, generator=generator) < density
    return torch.rand(shape, generator=generator) * active


def train_toys(
    config: ToyConfig,
    inputs: Callable[[Generator], Tensor],
    importance: Float[Tensor, "*toys n"] | None = None,
    *,
    start: Float[Tensor, "toys n d"] | None = None,
) -> ToyModel:
    """Train toys side by side, each on its own loss.

    Args:
        config: Size, optimizer, seed.
        inputs: Returns the next batch ``[toys, count, n]``, or ``[1, count, n]`` for all toys alike.
        importance: ``[n]``, or ``[toys, n]`` where it differs; default 1.
        start: Weights to begin from; default random, by the seed.
    Shape: returns: W ``[toys, n, d]``, b ``[toys, n]``.
    """
    generator = torch.Generator().manual_seed(config.seed)
    drawn = torch.randn(config.toys, config.n, config.d, generator=generator) / config.n**0.5
    W = (drawn if start is None else start.detach().clone()).requires_grad_()
    b = torch.zeros(config.toys, config.n, requires_grad=config.bias)
    model = ToyModel(W=W, b=b, relu=config.relu)
    optimizer = OPTIMIZERS[config.optimizer]([W, b] if config.bias else [W], config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in range(config.steps):
        optimizer.zero_grad()
        # The sum: the toys share no parameter, so each gets the gradient of its own loss.
        torch.autograd.backward(model.loss(inputs(generator), importance).sum())
        optimizer.step()
        schedule.step()
    return ToyModel(W=W.detach(), b=b.detach(), relu=config.relu)
