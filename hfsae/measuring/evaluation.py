"""What `evaluate` returns: the numbers of one dictionary in one model, as a table, a mapping, a file or a picture."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfsae.errors import CheckpointError
from hfsae.formats.files import read_json
from hfsae.measuring.drawing import draw_evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HISTOGRAMS = ("l0_histogram", "fvu_histogram")
_LOSSES = ("clean", "spliced", "mean", "zero")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """How well a dictionary stands for the activations at its site, and what splicing it in costs the model.

    Every mean is over all tokens of the data, each weighing the same. Reconstruction is measured on spliced tokens
    (valid, and not excluded by the dictionary's policy), losses on scored predictions (source and target both valid).
    Losses and what follows from them are None where none was asked for.
    """

    model: str | None
    """Where the model came from."""
    dictionary: str | None
    """Which dictionary it was."""
    site: str
    """Where it reads; of a transcoder also where it writes."""
    loss: str | None
    """What the ``ce_`` numbers are: "cross-entropy" in nats per scored prediction, "loss_fn", or None."""
    ce_clean: float | None = None
    """Loss of the model as it is."""
    ce_spliced: float | None = None
    """Loss with the reconstruction in place of the activation at every spliced token."""
    ce_zero: float | None = None
    """Loss with zero in that place."""
    ce_mean: float | None = None
    """Loss with the mean activation over all spliced tokens in that place."""
    recovered_zero: float | None = None
    """(ce_zero - ce_spliced) / (ce_zero - ce_clean)."""
    recovered_mean: float | None = None
    """(ce_mean - ce_spliced) / (ce_mean - ce_clean)."""
    kl: float | None = None
    """Mean KL(clean || spliced) over valid tokens, in nats."""
    fvu: float
    """sum |x - x_hat|^2 / sum |x - mean x|^2; 0 is perfect, 1 is as good as the mean."""
    mse: float
    """Mean squared error per element."""
    cosine: float
    """Mean cosine of x and x_hat, 0 where either is zero."""
    l2_ratio: float
    """sum |x_hat| / sum |x|."""
    relative_bias: float
    """sum |x_hat|^2 / sum <x, x_hat>."""
    l0: float
    """Features with f != 0 per token."""
    density: Tensor
    """Fraction of spliced tokens on which each feature fires, ``[d_sae]``."""
    dead_fraction: float
    """Fraction of features that fire on none of the spliced tokens."""
    l0_histogram: Tensor
    """How many spliced tokens there are on which 0, 1, 2, ... features fire."""
    fvu_histogram: Tensor
    """Spliced tokens by their |x - x_hat|^2 over the mean of |x - mean x|^2, in quarter-octaves; 0 is left out."""
    fvu_histogram_from: float | None
    """Where its first bin begins; None where x does not vary."""
    tokens_valid: int
    """Tokens that are not padding."""
    tokens_spliced: int
    """Those of them that the dictionary stands for."""
    tokens_scored: int
    """Predictions whose source and target are both valid."""
    documents: int
    """Texts, or rows of ids, that were read."""
    documents_empty: int
    """Those that had no token."""
    documents_cut: int
    """Those that went on in a second row."""
    data: str | None = None
    """What the data are called."""
    context: int | None = None
    """Most tokens in a row."""
    dtype: str | None = None
    """What the model computes in."""

    @property
    def explained_variance(self) -> float:
        """1 - fvu."""
        return 1.0 - self.fvu

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers under their names, ready for JSON: None where a number is not defined."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["explained_variance"] = self.explained_variance
        values["density"] = [float(f"{share:.6g}") for share in self.density.tolist()]
        values |= {name: getattr(self, name).tolist() for name in _HISTOGRAMS}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON; a folder gets an ``eval.json``."""
        target = Path(path)
        if target.is_dir():
            target /= "eval.json"
        target.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> "Evaluation":
        """Read what `save` wrote: a file, or the ``eval.json`` of a folder. What others added to it is passed over.

        Raises: CheckpointError, CheckpointNotFound: when it is no evaluation; the message names what is missing.
        """
        file = Path(path) / "eval.json" if Path(path).is_dir() else Path(path)
        told = read_json(file)
        known = {field.name: told[field.name] for field in fields(Evaluation) if field.name in told}
        try:
            known["density"] = torch.tensor(known["density"], dtype=torch.float32)
            known |= {name: torch.tensor(known.get(name, []), dtype=torch.int64) for name in _HISTOGRAMS}
            known.setdefault("fvu_histogram_from", None)
            return Evaluation(**known)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{file} is no evaluation: {error}. Write one with Evaluation.save.") from error

    def plot(self) -> "Figure":
        """Draw the losses, how often features fire, and how many fire on a token and how much error is left there."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 6.4), layout="constrained")
        draw_evaluation(figure, self)
        return figure

    def __str__(self) -> str:
        """Return the table: the losses always beside the ratios made of them."""
        lines = [f"{self.dictionary or 'dictionary'} at {self.site} of {self.model or 'the model'}"]
        lines.append(
            f"  tokens              {self.tokens_valid:,} valid, {self.tokens_spliced:,} spliced, "
            f"{self.tokens_scored:,} scored"
        )
        if self.loss is not None:
            lines.extend(self._loss_lines())
        lines += [
            f"  reconstruction      FVU {_number(self.fvu)}   explained variance {_number(self.explained_variance)}   "
            f"MSE {self.mse:.4g}",
            f"  direction, length   cosine {_number(self.cosine)}   L2 ratio {_number(self.l2_ratio)}   "
            f"relative bias {_number(self.relative_bias)}",
            f"  features            L0 {self.l0:.2f} of {len(self.density):,}   "
            f"{self.dead_fraction:.2%} fire on none of {self.tokens_spliced:,} tokens",
        ]
        return "\n".join(lines)

    def _loss_lines(self) -> list[str]:
        unit = "CE, nats/token" if self.loss == "cross-entropy" else "loss"
        losses = "   ".join(f"{name} {_number(getattr(self, f'ce_{name}'))}" for name in _LOSSES)
        recovered = f"{_number(self.recovered_zero)} of zero, {_number(self.recovered_mean)} of mean ablation"
        lines = [f"  {unit:<19} {losses}", f"  loss recovered      {recovered}"]
        if self.kl is not None:
            lines.append(f"  KL(clean‖spliced)   {_number(self.kl)} nats")
        return lines


def _number(value: float | None) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.4f}"
