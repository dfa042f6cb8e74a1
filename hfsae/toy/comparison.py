"""Neurons, random directions and a trained dictionary, scored alike: on a world of known truth, and on a real model.

The neuron basis and the random directions are TopK dictionaries like the trained one. Every seed cuts the samples anew
in a part on which elements pick what they stand for and one on which they are scored, and draws other directions.
"""

import keyword
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from hfsae.attach import Attachment
from hfsae.data.tokens import TokenBatch, batches, spliced_mask
from hfsae.dictionary import SAE
from hfsae.errors import InvalidValue
from hfsae.features.measures import TokenMask, line_starts, matching_tokens
from hfsae.hooks import capture
from hfsae.measuring.passes import at_rest
from hfsae.sae.sparse import SparseFeatures
from hfsae.sites import resolve, unwrap
from hfsae.toy.controls import neuron_basis, random_directions
from hfsae.toy.meaning import meaning
from hfsae.toy.worlds import World

PATTERNS = {
    "digit": r"\d",
    "quote": r"['\"]",
    "opening bracket": r"[(\[{]",
    "closing bracket": r"[)\]}]",
    "line break": r"\n",
    "indentation": r"^\s+$",
    "keyword": rf"^\s*(?:{'|'.join(keyword.kwlist)})$",
    "operator": r"^\s*[=+\-*/<>!%&|^~]+$",
    "underscore": r"_",
    "capital": r"^\s*[A-Z]",
    "word after a space": r"^ [a-z]",
    "comma or colon": r"[,:]",
    "comment": r"#",
}
"""Name to the regular expression of a class of tokens."""
BUSIEST = "trained, busiest"
"""What the standing of the features that fire most often is called, before their number."""
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Number of values to the 97.5 % quantile of Student's t for their mean."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % confidence interval (Student's t)."""

    mean: float
    half_width: float
    """The interval reaches so far to either side."""

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"

    @staticmethod
    def of(values: Sequence[float]) -> "Interval":
        """Return the interval of 2 to 10 values.

        Example:
            >>> print(Interval.of([0.1, 0.2, 0.3]))
            0.200 ± 0.248
        """
        if len(values) not in _STUDENT:
            raise InvalidValue(f"There are {len(values)} seeds. An interval takes 2 to {max(_STUDENT)}.")
        spread = float(torch.tensor(values, dtype=torch.float64).std())
        return Interval(sum(values) / len(values), _STUDENT[len(values)] * spread / math.sqrt(len(values)))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How one dictionary did, over all elements that are live and over seeds."""

    name: str
    purity: Interval
    """Mean share of an element's 16 strongest firings that carry the label it picked elsewhere."""
    f1: Interval
    """Mean F1 of an element against the label it picked elsewhere."""
    live: float
    """Elements that fire on both parts, mean over seeds."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Activations with what is known of each."""

    x: Float[Tensor, "count d"]
    tokens: Int[Tensor, "count slots"]
    """Labels for purity, -1 where a slot is empty."""
    masks: Int[Tensor, "count more"]
    """Labels for F1."""
    group: Int[Tensor, " count"]
    """What stays together when the samples are cut: the text, or the sample itself."""
    neurons: Float[Tensor, "count n"] | None = None
    """What the MLP's neurons say on the same samples, after their non-linearity."""

    def cut(self, seed: int) -> Bool[Tensor, " count"]:
        """Return which samples are on the first side of a random cut: whole groups, about half of the samples."""
        sizes = torch.bincount(self.group)
        order = torch.randperm(len(sizes), generator=Generator().manual_seed(seed))
        # Largest first would be more even, but the same at every seed. Each goes to the side that has less.
        first = torch.zeros(len(sizes), dtype=torch.bool)
        filled = [0, 0]
        for group in order.tolist():
            first[group] = filled[0] <= filled[1]
            filled[int(not first[group])] += int(sizes[group])
        return first[self.group]


def world_samples(world: World, count: int, *, seed: int) -> Samples:
    """Draw samples of a world, labelled by the true features that fire in each.

    Args: seed: Of the draw.
    """
    x, codes = world.sample(count, Generator().manual_seed(seed))
    fired = codes > 0
    slots = max(int(fired.sum(dim=-1).max()), 1)
    # topk on 0 and 1 puts the features that fire first; the others' slots are emptied.
    there, feature = fired.float().topk(slots, dim=-1)
    labels = feature.masked_fill(there == 0, -1)
    return Samples(x, labels, labels, torch.arange(count))


def text_samples(
    attachment: Attachment, texts: Sequence[str], *, tokenizer: Any, tokens_per_text: int = 6000, context: int = 256
) -> Samples:
    """Read the activations of texts at an attachment's site, labelled by what the tokens are.

    Labels for purity: the token, and the token before it. Labels for F1: these and the classes of `PATTERNS`, and the
    starts of lines. Tokens that the dictionary excludes are left out.

    Args:
        tokens_per_text: No more than that of any text, so that a long one does not drown the others.
    Raises: SiteNotFound: when the model has no MLP neurons in the attachment's block.
    """
    named = [*(matching_tokens(tokenizer, pattern) for pattern in PATTERNS.values()), line_starts(tokenizer)]
    model, parts, group = unwrap(attachment.model), [], []
    points = [attachment.point, resolve(model, attachment.site.layer, "mlp_act")]
    with at_rest(model):
        for number, text in enumerate(texts):
            for batch in batches([text], tokenizer=tokenizer, batch_size=16, context=context,
                                 max_tokens=tokens_per_text):  # fmt: skip
                x, neurons = capture(model, points, **batch.model_inputs())
                mask = spliced_mask(batch, x, attachment.dictionary.config)
                known = (x, neurons, *_labels(batch, named, len(tokenizer)))
                parts.append([each[mask] for each in known])
                group.append(torch.full((int(mask.sum()),), number))
    x, neurons, tokens, masks = (torch.cat(part) for part in zip(*parts, strict=True))
    return Samples(x, tokens, masks, torch.cat(group), neurons)


def _labels(batch: TokenBatch, named: Sequence[TokenMask], vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return the labels of tokens, ``[batch, seq, 2]``, and these with those of classes."""
    ids = batch.input_ids
    before = torch.nn.functional.pad(ids[:, :-1] + vocabulary, (1, 0), value=-1)
    tokens = torch.stack([ids, before], dim=-1)
    classes = [torch.where(mask(ids), 2 * vocabulary + i, -1) for i, mask in enumerate(named)]
    return tokens, torch.cat([tokens, torch.stack(classes, dim=-1)], dim=-1)


def compare_with_controls(dictionary: SAE, samples: Samples, *, seeds: Sequence[int] = (0, 1, 2)) -> list[Standing]:
    """Score a TopK dictionary, the neuron basis, random directions and MLP neurons alike, over all live elements.

    A mean over thousands of elements has many rare ones in it, which nothing predicts well. So the features that fire
    most often stand beside them once more, as many as there are neurons.

    The interval covers the cut of the samples and, for random directions, their draw; there is one trained dictionary,
    so what another training would give is not in it.

    Args:
        dictionary: The trained one; the controls take its k, b_dec and (random directions) d_sae.
        samples: From `text_samples` or `world_samples`.
        seeds: 2 to 10, of cuts and directions.
    """
    fired = _fixed(dictionary, samples)
    scores: dict[str, list[tuple[float, float, float]]] = {}
    for seed in seeds:
        fired["random directions"] = _encoded(random_directions(dictionary, seed), samples.x)
        cut = samples.cut(seed)
        for name, f in fired.items():
            found = meaning(f, samples.tokens, samples.masks, cut)
            row = (float(found.purity.mean()), float(found.f1.mean()), float(len(found.f1)))
            scores.setdefault(name, []).append(row)
    return [_standing(name, rows) for name, rows in scores.items()]


def _fixed(dictionary: SAE, samples: Samples) -> dict[str, SparseFeatures]:
    """Return what fires in the dictionaries that are the same for every seed."""
    basis = neuron_basis(dictionary)
    trained, coordinates = (_encoded(each, samples.x) for each in (dictionary, basis))
    fired = {"trained dictionary": trained, "neuron basis": coordinates}
    neurons = coordinates
    if samples.neurons is not None:
        # A neuron's activation is its own code: what is below zero after a GELU counts as silent.
        strongest = samples.neurons.topk(basis.config.k or 1, dim=-1)
        neurons = SparseFeatures(strongest.values.relu(), strongest.indices, d_sae=samples.neurons.shape[-1])
        fired["MLP neurons"] = neurons
    if neurons.d_sae < trained.d_sae:
        fired[f"{BUSIEST} {neurons.d_sae}"] = _busiest(trained, neurons.d_sae)
    return fired


def _busiest(f: SparseFeatures, most: int) -> SparseFeatures:
    """Return the same without all but the features that fire most often."""
    _, feature, _ = f.fired()
    kept = torch.zeros(f.d_sae, dtype=torch.bool)
    kept[torch.bincount(feature, minlength=f.d_sae).topk(most).indices] = True
    return SparseFeatures(f.values * kept[f.indices], f.indices, d_sae=f.d_sae)


@torch.no_grad()
def _encoded(dictionary: SAE, x: Tensor) -> SparseFeatures:
    return dictionary.encode_sparse(x)


def _standing(name: str, rows: Sequence[tuple[float, float, float]]) -> Standing:
    purity, f1, live = zip(*rows, strict=True)
    return Standing(name=name, purity=Interval.of(purity), f1=Interval.of(f1), live=sum(live) / len(live))
