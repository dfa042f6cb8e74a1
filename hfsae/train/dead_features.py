"""Features that never fire: a clock that notices them, a new start for them early on, a loss for them later.

1. A feature is dead when it has not fired for so many tokens that an average one was expected to fire ``after_firings``
   times. The clock counts tokens on the device; it is read every few steps, never in each.
2. Early in the run, dead features start again from the error of tokens that are explained badly. So does, of each pair
   of features with nearly the same direction and encoder, the one that fires less.
3. Later, dead features explain together what the living leave over (AuxK), which pulls them in without a jump. There
   each is lifted until it is above 0 on its share of the tokens: most dead features are below 0 on all of them, where a
   loss behind a ReLU has no gradient that could wake them.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hfsae.sae import losses
from hfsae.train.config import DeadConfig
from hfsae.train.recipe import Recipe, Terms

_PRODUCT_ROWS = 2048
"""Rows of the similarity matrix made at a time."""


class DeadFeatures(nn.Module):
    """The clock of each feature, and what is done about those whose time is up.

    Args:
        config: When and how.
        d_sae: Number of features.
        l0: Features expected to fire per token.
    """

    idle: Tensor
    rate: Tensor

    def __init__(self, config: DeadConfig, d_sae: int, l0: float) -> None:
        super().__init__()
        self.config = config
        self._share = l0 / d_sae
        self.limit = config.after_firings / self._share
        self.register_buffer("idle", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("rate", torch.zeros(d_sae))

    @torch.no_grad()
    def tick(self, terms: Terms) -> None:
        """Count a batch: the clock of a feature that fired starts again."""
        self.idle.add_(terms.n_tokens).mul_(terms.counts == 0)
        self.rate.lerp_(terms.counts / terms.n_tokens, 0.01)

    @property
    def dead(self) -> Int[Tensor, " dead"]:
        """Ids of the features whose time is up."""
        return (self.idle > self.limit).nonzero().flatten()

    def aux_loss(
        self, recipe: Recipe, x: Tensor, error: Float[Tensor, "batch d_out"], dead: Int[Tensor, " dead"]
    ) -> Tensor:
        """Return the weighted loss by which those features alone explain the error, at most k of them a token.

        Gao et al. take d_in / 2: then dead features become many faint ones, each too weak to ever be among the k.
        """
        z = _unsilenced(functional.linear(recipe.centred(x), recipe.W_enc[dead], recipe.b_enc[dead]), self._share)
        most = recipe.whole_k
        if len(dead) > most:
            floor = z.detach().topk(most, dim=1, sorted=False).values.amin(1, keepdim=True)
            z = z * (z >= floor)
        share = min(len(dead) / most, 1.0)
        return self.config.aux_coefficient * share * losses.dead_reconstruction(z @ recipe.W_dec[dead], error)

    @torch.no_grad()
    def reseed(
        self, recipe: Recipe, optimizer: torch.optim.Optimizer, error: Tensor, generator: torch.Generator
    ) -> int:
        """Start dead and duplicate features again from the error of tokens drawn by its square; return how many."""
        doomed = torch.zeros_like(self.idle, dtype=torch.bool)
        doomed[torch.cat([self.dead, self._duplicates(recipe)])] = True
        rows = doomed.nonzero().flatten()[: len(error) // 2]
        if not len(rows):
            return 0
        weights = error.square().sum(1)
        tokens = torch.multinomial(weights.cpu(), len(rows), generator=generator).to(error.device)
        directions = functional.normalize(error[tokens], dim=1)
        recipe.W_dec[rows] = directions
        recipe.b_enc[rows] = 0
        if recipe.shape.d_in == recipe.shape.d_out:
            recipe.W_enc[rows] = directions
        for parameter in recipe.of_features():
            for name in ("exp_avg", "exp_avg_sq"):
                if name in optimizer.state.get(parameter, {}):
                    optimizer.state[parameter][name][rows] = 0
        self.idle[rows] = 0
        return len(rows)

    def _duplicates(self, recipe: Recipe) -> Int[Tensor, " duplicates"]:
        """Return, of each pair of features that are nearly the same, the one that fires less."""
        found = [self.idle.new_zeros(0)]
        directions, encoders = (functional.normalize(W, dim=1) for W in (recipe.W_dec, recipe.W_enc))
        for start in range(0, len(directions), _PRODUCT_ROWS):
            part = slice(start, start + _PRODUCT_ROWS)
            near = (directions[part] @ directions.T > self.config.duplicate_cosine) & (
                encoders[part] @ encoders.T > self.config.duplicate_cosine
            )
            rate = self.rate[part, None]
            ids = torch.arange(len(directions), device=near.device)
            first = (self.rate > rate) | ((self.rate == rate) & (ids < ids[part, None]))
            found.append((near & first).any(1).nonzero().flatten() + start)
        return torch.cat(found)


def _unsilenced(z: Float[Tensor, "batch dead"], share: float) -> Float[Tensor, "batch dead"]:
    """Return ReLU of pre-activations, each feature lifted where it is above 0 on less than its share of tokens."""
    own = min(max(round(share * len(z)), 1), len(z) - 1)
    floor = z.detach().topk(own + 1, dim=0, sorted=False).values.amin(0)
    return (z - floor.clamp(max=0)).relu()
