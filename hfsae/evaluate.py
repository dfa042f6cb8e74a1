"""How good a dictionary is in its model: reconstruction at the site, and the loss with it spliced in.

For each batch, once: run the model clean and read x; make the three masks; encode and decode x; run with the
reconstruction, and with zero, in place of x. The mean of x over all of the data is known only then: a second round runs
with that. Where the activation is the whole residual stream, rows that an ablation makes equal are run once.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from hfsae.attaching.attachment import Attachment
from hfsae.data.limits import longest_row, special_ids, vocabulary_size
from hfsae.data.tokens import batches
from hfsae.errors import InvalidValue, did_you_mean
from hfsae.measuring.evaluation import Evaluation
from hfsae.measuring.passes import at_rest
from hfsae.measuring.rounds import Measuring
from hfsae.measuring.scoring import LossFn

__all__ = ["Evaluation", "evaluate"]

_METRICS = ("all", "reconstruction")
_Item = TypeVar("_Item")


def evaluate(  # noqa: PLR0913
    attachment: Attachment,
    data: object,
    *,
    tokenizer: Any = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    context: int | None = None,
    pack: bool | None = None,
    prepend_bos: bool | None = None,
    exclude_special_tokens: bool | None = None,
    exclude_first_position: bool | None = None,
    loss_fn: LossFn | None = None,
    metrics: str = "all",
    data_name: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a dictionary in its model: reconstruction, features, and the loss with it spliced in.

    Three masks say what counts. Valid: not padding. Spliced: valid and not excluded by the dictionary's policy; there
    the reconstruction, zero or the mean takes the place of the activation, elsewhere it passes. Scored: source and
    target both valid. Every average is over all tokens of the data, so batch size, padding and order change nothing.

    Args:
        attachment: From `attach`; it may have other edits applied, which then belong to the clean model.
        data: Texts or token ids of any kind that `hfsae.data.tokens.batches` reads.
        tokenizer: Needed for texts; says which tokens are special (else the model's config does).
        batch_size: Rows in a batch; changes memory and time only.
        max_tokens: Stop after so many valid tokens; None reads all.
        context: Most tokens in a row; by default what the model can read, at most 1024.
        pack: Join documents into full rows. By default texts are packed and rows of ids kept.
        prepend_bos: Begin documents and rows with BOS. By default texts are, where the tokenizer has one.
        exclude_special_tokens: In place of the dictionary's own policy; likewise ``exclude_first_position``.
        loss_fn: A loss of your own, from the model's outputs and the `TokenBatch`: one number per item, or their mean.
            It takes the place of cross-entropy, and no KL is measured.
        metrics: ``"all"``; ``"reconstruction"`` leaves all losses out, and the model runs no further than the site.
        data_name: What the data are called in the card; by default the name of a `datasets.Dataset`.
        progress: Show a bar when it takes more than two seconds.

    Raises:
        InvalidValue: when the data hold nothing to measure, ids are beyond the vocabulary, activations are not finite,
            or the model has no next-token loss and no ``loss_fn`` is given.
        InvalidType: for data of another kind, or texts without a tokenizer.
    """
    if metrics not in _METRICS:
        raise InvalidValue(f"metrics={metrics!r} is unknown.{did_you_mean(str(metrics), _METRICS)}")
    config = attachment.dictionary.config
    policy = replace(
        config,
        exclude_special_tokens=_chosen(exclude_special_tokens, config.exclude_special_tokens),
        exclude_first_position=_chosen(exclude_first_position, config.exclude_first_position),
    )
    measuring = Measuring(attachment, policy, loss_fn)
    model = measuring.passes.model
    context = longest_row(model) if context is None else context
    stream = batches(
        data,
        tokenizer=tokenizer,
        batch_size=batch_size,
        context=context,
        max_tokens=max_tokens,
        pack=pack,
        prepend_bos=prepend_bos,
        special_ids=special_ids(model) if tokenizer is None else None,
        vocab_size=vocabulary_size(model),
    )
    given = list(stream)
    with at_rest(model):
        if metrics == "all":
            measuring.choose_loss(given)
        for number, batch in _with_bar(list(enumerate(given)), progress, "reconstruction and splice"):
            measuring.first_round(number, batch)
        measuring.check()
        for ablated in _with_bar(measuring.ablated, progress, "mean ablation"):
            measuring.second_round(ablated)
    named = data_name or getattr(getattr(data, "info", None), "dataset_name", None)
    return replace(measuring.result(stream.counts), data=named, context=context, dtype=_dtype_of(model))


def _dtype_of(model: nn.Module) -> str | None:
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    return None if first is None else str(first.dtype).removeprefix("torch.")


def _chosen(given: bool | None, default: bool) -> bool:
    return default if given is None else given


def _with_bar(items: list[_Item], progress: bool, what: str) -> Iterator[_Item]:
    from tqdm import tqdm

    # disable=None: no bar where no one watches, such as a file.
    yield from tqdm(items, desc=what, unit="batch", delay=2, leave=False, disable=None if progress else True)
