"""Fine-tuning a dictionary on its model's own predictions: what is spliced in should change them as little as it can.

For each batch: run the model clean and read x; run it with the reconstruction in place of x; step on

    KL(clean || spliced) + w * FVU,    w such that both weigh the same

The second term keeps the reconstruction one: KL alone finds other features that happen to serve the same predictions.
The model is only read. Thresholds and the lengths of decoder rows stay as they are.

Source: Karvonen 2025, arXiv:2503.17272: a short fine-tuning at the end does most of what end-to-end training does.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.attach import Attachment, attach
from hfsae.data.limits import special_ids, vocabulary_size
from hfsae.data.sources import Source, open_source
from hfsae.data.tokens import TokenBatch, batches, spliced_mask
from hfsae.dictionary import SAE
from hfsae.errors import InvalidValue, TrainingError
from hfsae.hooks import capture
from hfsae.measuring.passes import at_rest
from hfsae.metrics import kl_divergence
from hfsae.sae.losses import reconstruction
from hfsae.sites import unwrap
from hfsae.train.calibration import measure
from hfsae.train.checkpoints import Checkpoints, RunState, refuse_changes
from hfsae.train.config import check_count, check_positive
from hfsae.train.schedules import learning_rate_factor
from hfsae.train.signals import StopRequest

_RATE = 5e-5
_MEASURED = 16_384
"""Activations on which the features are measured anew."""
_CHECKPOINTS = 20


def finetune(  # noqa: PLR0913 - as hfsae.train
    model: Any,
    data: Any,
    sae: SAE,
    *,
    tokenizer: Any = None,
    tokens: int = 500_000,
    batch_size: int = 8,
    context: int = 128,
    learning_rate: float = _RATE,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: bool = True,
) -> SAE:
    """Return a copy of a dictionary, fine-tuned so that splicing it in changes the model's predictions less.

    Args:
        model: A causal model; only read.
        data: As for `hfsae.train`.
        sae: A dictionary of that model.
        tokenizer: The model's own; needed for text.
        tokens: Tokens to train on; data that hold fewer are read again.
        batch_size: Rows in a step.
        context: Tokens in a row.
        learning_rate: Of Adam, with a warm-up over the first twentieth and a decay over the last fifth.
        seed: Of the order of the documents.
        folder: Where checkpoints go, about twenty; a run that was stopped goes on from there when called again, given
            data that can be read again. SIGINT and SIGTERM then save before the process exits.
        progress: Show a bar where there is a terminal.

    Raises:
        InvalidValue: when the data hold no tokens that are spliced, or numbers make no sense.
        TrainingError: when the loss is not finite, or the folder holds another run.
        SystemExit: after SIGINT or SIGTERM, where there is a folder.
    """
    from tqdm.auto import tqdm

    for name, number in (("tokens", tokens), ("batch_size", batch_size), ("context", context)):
        check_count(name, number)
    check_positive("learning_rate", learning_rate)
    tuned = SAE(sae.config, tensors={name: tensor.detach().clone() for name, tensor in sae.state_dict().items()})
    tuned.labels = dict(sae.labels)
    steps = math.ceil(tokens / (batch_size * context))
    rules = {"tokenizer": tokenizer, "batch_size": batch_size, "context": context}
    source = open_source(data, seed)
    numbers = {"tokens": tokens, "learning_rate": learning_rate, "batch_size": batch_size, "context": context}
    checkpoints = None if folder is None else Checkpoints(Path(folder), max(steps // _CHECKPOINTS, 1))
    with ExitStack() as stack:
        request = StopRequest() if checkpoints is None else stack.enter_context(checkpoints.held())
        attachment = stack.enter_context(attach(model, sae=tuned, name="sae_in_training", force=True))
        stack.enter_context(at_rest(model))
        tuning = _Tuning(attachment, tuned, learning_rate, steps)
        if checkpoints is not None:
            tuning.resume(checkpoints, {"dictionary": sae.id, "seed": seed, **source.describe(), **numbers})
        left = islice(_endless(source, rules, model), tuning.done, steps)
        for batch in tqdm(left, total=steps, initial=tuning.done, desc="finetune", disable=None if progress else True):
            tuning.step(batch)
            if checkpoints is not None:
                checkpoints.save_if_due(tuning.state, tuning.done, tuning.done == steps, request)
    tuned.statistics = measure(tuned, tuning.last)
    return tuned


class _Tuning:
    """A fine-tuning under way."""

    def __init__(self, attachment: Attachment, sae: SAE, rate: float, steps: int) -> None:
        self.attachment, self.sae, self.rate, self.steps = attachment, sae, rate, steps
        self.done = 0
        self.settings: dict[str, Any] = {}
        self.last: list[Tensor] = []
        self.weights = [p for name, p in sae.named_parameters() if name != "threshold"]
        self.lengths = sae.W_dec.detach().norm(dim=1, keepdim=True)
        self.optimizer = torch.optim.Adam(self.weights, lr=rate)

    def step(self, batch: TokenBatch) -> None:
        """Do a step; what was read last is kept in `last`.

        Raises:
            InvalidValue: when no token of the batch is spliced.
            TrainingError: when the loss is not finite.
        """
        model, points = self.attachment.model, [self.attachment.point, self.attachment.write_point]
        batch = batch.to(next(model.parameters()).device)
        x, y = capture(model, points, **batch.model_inputs())
        mask = spliced_mask(batch, x, self.sae.config)
        if not bool(mask.any()):
            raise InvalidValue("A batch holds no token that is spliced. Give longer texts.")
        clean = model(**batch.model_inputs()).logits[batch.valid]
        with torch.enable_grad():
            x_hat = self.sae(x[mask])
            filled = y.clone().masked_scatter(mask[..., None], x_hat.to(y))
            with self.attachment.replace(filled, positions=mask):
                spliced = model(**batch.model_inputs()).logits[batch.valid]
            kl = kl_divergence(clean, spliced).mean()
            target = y[mask].float()
            fvu = reconstruction(x_hat.float(), target, (target - target.mean(0)).square().sum(1).mean())
            loss = kl + (kl.detach() / fvu.detach().clamp(min=1e-8)) * fvu
            gradients = torch.autograd.grad(loss, self.weights)
        if not math.isfinite(float(loss)):
            raise TrainingError(f"The loss is {float(loss)} after {self.done} steps. Lower learning_rate={self.rate}.")
        self._apply(gradients)
        self.last.append(x[mask])
        if sum(map(len, self.last[1:])) >= _MEASURED:
            self.last.pop(0)

    def state(self) -> RunState:
        """Return all that `resume` needs to go on exactly from here."""
        tensors = dict(self.sae.state_dict())
        for place, weight in enumerate(self.weights):
            tensors |= {f"optimizer.{place}.{key}": value for key, value in self.optimizer.state[weight].items()}
        tensors |= {f"last.{place}": part for place, part in enumerate(self.last)}
        return RunState(tensors, {"done": self.done, "settings": self.settings})

    def resume(self, checkpoints: Checkpoints, settings: dict[str, Any]) -> None:
        """Go on where the last checkpoint stands, if there is one.

        Raises: TrainingError: when it began with other settings, naming each.
        """
        self.settings = settings
        state = checkpoints.load()
        if state is None:
            return
        refuse_changes(state.numbers["settings"], settings, checkpoints.folder)
        device = self.sae.W_dec.device
        self.sae.load_state_dict({name: state.tensors[name] for name in self.sae.state_dict()})
        for place, weight in enumerate(self.weights):
            moments = {key: state.tensors[f"optimizer.{place}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[weight] = {key: value.to(device) for key, value in moments.items()}
        parts = sum(name.startswith("last.") for name in state.tensors)
        self.last = [state.tensors[f"last.{place}"].to(device) for place in range(parts)]
        self.done = state.numbers["done"]

    def _apply(self, gradients: tuple[Tensor, ...]) -> None:
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * learning_rate_factor(self.done, self.steps, warmup=0.05, decay=0.2)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.sae.W_dec.mul_(self.lengths / self.sae.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-8))
        self.done += 1


def _endless(source: Source, rules: dict[str, Any], model: Any) -> Iterator[TokenBatch]:
    for epoch in count():
        empty = True
        for batch in batches(source.epoch(epoch), **rules, **_of_model(model, rules["tokenizer"])):
            empty = False
            yield batch
        if empty or not source.repeatable:
            return


def _of_model(model: Any, tokenizer: Any) -> dict[str, Any]:
    root = unwrap(model)
    return {"special_ids": special_ids(root) if tokenizer is None else None, "vocab_size": vocabulary_size(root)}
