"""What a dictionary in training costs its model: now and then it is spliced into it on held-out text."""

from dataclasses import dataclass
from typing import Any

from hfsae.attach import attach
from hfsae.dictionary import SAE
from hfsae.evaluate import evaluate

_NAME = "sae_in_training"


@dataclass(frozen=True)
class SpliceProbe:
    """Evaluates a dictionary in its model every so many steps."""

    model: Any
    """The model."""
    data: Any
    """Held-out text, the same each time."""
    tokenizer: Any
    """The model's own."""
    every: int
    """Steps between two."""
    max_tokens: int = 8192
    """Tokens of the data that are read."""

    def __call__(self, sae: SAE) -> dict[str, float]:
        """Return FVU on held-out text and, where the model predicts tokens, what splicing costs."""
        with attach(self.model, sae=sae, name=_NAME, force=True) as attachment:
            found = evaluate(
                attachment, self.data, tokenizer=self.tokenizer, max_tokens=self.max_tokens, progress=False
            )
        costs = {"ce_clean": found.ce_clean, "ce_spliced": found.ce_spliced, "recovered": found.recovered_mean}
        return {"held_out_fvu": found.fvu, **{name: cost for name, cost in costs.items() if cost is not None}}
