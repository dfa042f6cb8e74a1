"""Scores of a dictionary where the true features are known: are they found, and do they fire when they should?

1. Cosines between every true direction and every decoder row: rec90 and the mean maximum cosine similarities.
2. Hungarian matching on those cosines: each true feature gets a row of its own.
3. Firing of the matched rows against the true codes: precision, recall and F1, the mean over true features.
4. Absorption: a parent's row goes missing just where one of its children fires.
"""

from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hfsae.errors import InvalidValue, MissingPackage
from hfsae.toy.worlds import World

RECOVERED = 0.9
"""Cosine above which a true feature counts as recovered (rec90)."""


@runtime_checkable
class Coder(Protocol):
    """What is scored: an `hfsae.SAE`, or anything else with directions that encodes and decodes."""

    @property
    def W_dec(self) -> Tensor:
        """The directions ``[d_sae, d]``, one row for each feature."""
        ...

    def encode(self, x: Tensor, /) -> Tensor:
        """Return feature activations ``[count, d_sae]`` of ``x [count, d]``."""
        ...

    def decode(self, f: Tensor, /) -> Tensor:
        """Return the reconstruction ``[count, d]`` of ``f [count, d_sae]``."""
        ...


@dataclass(frozen=True, kw_only=True)
class RecoveryScores:
    """How well a dictionary found the truth. All but `l0`, `fvu`, `dead` and `absorption`: 0..1, higher is better."""

    rec90: float
    """Share of true features whose best cosine with a decoder row exceeds 0.9."""
    mmcs_forward: float
    """Mean over true features of their best cosine with a decoder row."""
    mmcs_backward: float
    """Mean over decoder rows of their best cosine with a true feature."""
    precision: float
    """Of the samples where a matched row fires, those where its true feature does; mean over true features."""
    recall: float
    """Of the samples where a true feature fires, those where its matched row does; mean over true features."""
    f1: float
    """Harmonic mean of precision and recall of each true feature, then the mean over true features."""
    l0: float
    """Features with f != 0 per sample."""
    fvu: float
    """Fraction of variance unexplained; 0 is perfect, 1 is predicting the mean."""
    dead: float
    """Fraction of rows that fire on none of the samples."""
    absorption: float | None = None
    """Parent recall without its children minus with one of them; 0: none. None where the world has no trees."""

    def to_dict(self) -> dict[str, float | None]:
        """Return the scores by name, ready for JSON."""
        return asdict(self)


def cosines(true: Float[Tensor, "n d"], found: Float[Tensor, "d_sae d"]) -> Float[Tensor, "n d_sae"]:
    """Return the cosine of every true direction with every found one; a zero row has cosine 0."""
    normalize = torch.nn.functional.normalize
    return normalize(true.float(), dim=-1) @ normalize(found.float(), dim=-1).T


def match(similarity: Float[Tensor, "n d_sae"]) -> Int[Tensor, " n"]:
    """Return for each true feature the row of its own that it is matched to, or -1 where rows are too few.

    The assignment, one to one, with the largest total similarity.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingPackage("Matching features needs scipy. It is not installed. Run: pip install scipy") from error

    features, rows = linear_sum_assignment(similarity.numpy(force=True), maximize=True)
    matched = torch.full((len(similarity),), -1)
    matched[torch.as_tensor(features)] = torch.as_tensor(rows)
    return matched


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp(min=1)


def _matched_firing(f: Tensor, matched: Tensor) -> Bool[Tensor, "count n"]:
    return (f[:, matched.clamp(min=0)] != 0) & (matched >= 0)


def _firing_scores(truth: Bool[Tensor, "count n"], guess: Bool[Tensor, "count n"]) -> tuple[float, float, float]:
    """Return precision, recall and F1, each the mean over the true features that fire in these samples."""
    seen = truth.any(dim=0)
    truth, guess = truth[:, seen], guess[:, seen]
    hits, true_count, guess_count = (t.sum(dim=0).float() for t in (truth & guess, truth, guess))
    scores = (_ratio(hits, guess_count), _ratio(hits, true_count), _ratio(2 * hits, true_count + guess_count))
    precision, recall, f1 = (float(score.mean()) for score in scores)
    return precision, recall, f1


def absorption(
    truth: Bool[Tensor, "count n"], guess: Bool[Tensor, "count n"], trees: Int[Tensor, "trees four"]
) -> float:
    """Return how much of a parent's firing is lost where one of its children fires: recall without minus recall with.

    Args:
        truth: Where the true features fire.
        guess: Where the rows matched to them fire.
        trees: Feature ids of each parent, then its children.
    Returns:
        Mean over trees seen in both conditions, -1..1 (NaN: none was); above 0, child rows stand in for their parent.
    Source: the effect is that of Chanin et al. 2024, arXiv:2409.14507; they probe for letters, here the truth is known.
    """
    parent, child = trees[:, 0], truth[:, trees[:, 1:]].any(dim=-1)
    parent_on, found = truth[:, parent], guess[:, parent]
    alone, accompanied = parent_on & ~child, parent_on & child
    seen = alone.any(dim=0) & accompanied.any(dim=0)
    recalls = [_ratio((found & where).sum(dim=0), where.sum(dim=0))[seen] for where in (alone, accompanied)]
    return float((recalls[0] - recalls[1]).mean())


@torch.no_grad()
def recovery(
    dictionary: Coder, world: World, x: Float[Tensor, "count d"], codes: Float[Tensor, "count n"]
) -> RecoveryScores:
    """Score a dictionary against the world its activations come from.

    Args:
        dictionary: Has ``W_dec [d_sae, d]``, ``encode`` and ``decode``: an `hfsae.SAE` or a control.
        world: The truth.
        x: Fresh activations of that world; 8,192 and more give F1 to about 0.01.
        codes: What made them, as `World.sample` returns it.
    Raises: InvalidValue: when x, codes, world and dictionary do not fit each other.
    Source: MMCS: Sharkey et al. 2022; both ways and rec90 as in reports on toy models since.
    """
    if x.shape[1:] != (world.d,) or codes.shape != (len(x), world.n) or dictionary.W_dec.shape[1:] != (world.d,):
        raise InvalidValue(
            f"x {list(x.shape)}, codes {list(codes.shape)} and W_dec {list(dictionary.W_dec.shape)} do not fit "
            f"together. The world has n={world.n} features in d={world.d} dimensions. Sample x and codes from it."
        )
    similarity = cosines(world.directions.to(x.device), dictionary.W_dec)
    f = dictionary.encode(x)
    truth, guess = codes > 0, _matched_firing(f, match(similarity).to(f.device))
    precision, recall, f1 = _firing_scores(truth, guess)
    best, error, spread = similarity.amax(dim=1), x - dictionary.decode(f), x - x.mean(dim=0)
    return RecoveryScores(
        rec90=float((best > RECOVERED).float().mean()),
        mmcs_forward=float(best.mean()),
        mmcs_backward=float(similarity.amax(dim=0).mean()),
        precision=precision,
        recall=recall,
        f1=f1,
        l0=float((f != 0).sum(dim=-1).float().mean()),
        fvu=float(error.double().pow(2).sum() / spread.double().pow(2).sum()),
        dead=float((f == 0).all(dim=0).float().mean()),
        absorption=None if world.trees is None else absorption(truth, guess, world.trees.to(x.device)),
    )
