"""Training of the default language model: a small GPT-2 on Python source, in about an hour of one core.

1. `train_tokenizer` learns a byte-level BPE of 4,096 tokens from the library's training text.
2. `Windows` cuts each source into rows of context + 1 tokens that overlap by one. In nine rows of ten the first token
   is replaced by the beginning-of-text token, so that position 0 nearly always holds it, as it does at inference.
3. `train_language_model` draws rows from the sources, at first broadly, later mostly from the library (`mixture`), and
   steps `Muon` for the matrices of the blocks and AdamW for the rest; the rates rise, hold, and fall linearly to 0.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from hfsae.errors import InvalidValue

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the default language model is and how it is trained."""

    vocabulary: int = 4096
    """Tokens of the byte-level BPE, the special one included."""
    context: int = 256
    """Positions of the model."""
    width: int = 192
    """Width of the residual stream."""
    blocks: int = 4
    """Number of transformer blocks."""
    heads: int = 6
    """Attention heads per block."""
    rows: int = 16
    """Rows of ``context`` tokens per step."""
    steps: int = 4700
    """Optimizer steps."""
    matrix_rate: float = 0.02
    """Peak learning rate of Muon."""
    other_rate: float = 3e-3
    """Peak learning rate of AdamW, for embeddings, norms and biases."""
    warmup: float = 0.02
    """Fraction of the steps over which the rates rise."""
    decay: float = 0.65
    """Fraction of the steps, the last ones, over which the rates fall to 0."""
    seed: int = 0
    """Seed of initialisation and sampling."""

    def __post_init__(self) -> None:
        if min(self.steps, self.rows, self.context) < 1:
            raise InvalidValue(f"steps={self.steps}, rows={self.rows}, context={self.context} do not train. Use >= 1.")


def train_tokenizer(texts: Iterable[str], recipe: Recipe) -> "PreTrainedTokenizerFast":
    """Return a byte-level BPE learned from ``texts`` that puts the beginning-of-text token first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    )


def tokens_of(texts: Iterable[str], tokenizer: "PreTrainedTokenizerFast") -> Int[Tensor, " tokens"]:
    """Return the texts as one row of tokens, each text beginning with the beginning-of-text token."""
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts))
    return torch.tensor([token for text in encoded for token in text.ids], dtype=torch.int32)


class Windows:
    """Endless rows of a token stream: every epoch all of them, in a new order and with new borders.

    Args:
        tokens: The stream.
        context: Tokens predicted per row; a row has one more.
        seed: Fixes the order; with ``taken`` it is the whole state.
    """

    def __init__(self, tokens: Int[Tensor, " tokens"], context: int, seed: int) -> None:
        if len(tokens) < 2 * context + 1:
            raise InvalidValue(f"{len(tokens)} tokens do not fill rows of {context}. Give at least {2 * context + 1}.")
        self.taken = 0
        self._tokens, self._context, self._seed = tokens, context, seed
        self._per_epoch = (len(tokens) - 1) // context - 1
        self._epoch, self._starts = -1, torch.empty(0, dtype=torch.long)

    def take(self, rows: int) -> Int[Tensor, "rows length"]:
        """Return the next ``rows`` rows of context + 1 tokens."""
        starts = torch.stack([self._start(self.taken + row) for row in range(rows)])
        self.taken += rows
        return self._tokens[starts[:, None] + torch.arange(self._context + 1)].long()

    def _start(self, row: int) -> Tensor:
        epoch, position = divmod(row, self._per_epoch)
        if epoch != self._epoch:
            random = torch.Generator().manual_seed(self._seed * 1000 + epoch)
            border = torch.randint(self._context, (1,), generator=random)
            self._epoch = epoch
            self._starts = torch.randperm(self._per_epoch, generator=random) * self._context + border
        return self._starts[position]


def mixture(progress: float) -> dict[str, float]:
    """Return the share of each source at a point of the training in [0, 1): broad at first, then mostly the library."""
    late = min(max((progress - 0.3) / 0.4, 0.0), 1.0)
    early_shares = {"library": 0.24, "tests": 0.20, "packages": 0.50, "prose": 0.06}
    late_shares = {"library": 0.60, "tests": 0.17, "packages": 0.17, "prose": 0.06}
    return {name: (1 - late) * early_shares[name] + late * late_shares[name] for name in early_shares}


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: for matrices ``[in, out]``, as transformers' ``Conv1D`` keeps them.

    A matrix three times as wide as high is a fused query/key/value one and is treated as its three parts.
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. Nesterov momentum, five iterations;
    the weights decay by 0.05 of the rate at each step, since the library is read more than three times.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": 0.95, "decay": 0.05})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix by its gradient; matrices of one shape are orthogonalised in one batch."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for matrix in group["params"]:
                average = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                average.lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(average, group["momentum"])
                matrix.mul_(1 - group["lr"] * group["decay"])
                parts = 3 if matrix.shape[1] == 3 * matrix.shape[0] else 1
                for part, piece in zip(matrix.chunk(parts, dim=1), update.chunk(parts, dim=1), strict=True):
                    by_shape.setdefault(part.shape, []).append((part, piece))
            for shape, pairs in by_shape.items():
                scale = group["lr"] * math.sqrt(max(1.0, shape[1] / shape[0]))
                for (part, _), piece in zip(pairs, orthogonal(torch.stack([p for _, p in pairs])), strict=True):
                    part.add_(piece, alpha=-scale)


def orthogonal(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """Return the matrices with their singular values pushed towards 1, by five Newton-Schulz iterations."""
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    # bf16 is enough for a direction, and twice as fast as fp32 on the processors that have it.
    x = (wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    # Coefficients of the source: quick to bring small singular values up, at the price of ending in about 0.7 to 1.2.
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    back: Tensor = x.mT if wide is not matrices else x
    return back.to(matrices.dtype)


def new_model(recipe: Recipe, tokenizer: "PreTrainedTokenizerFast") -> "GPT2LMHeadModel":
    """Return the untrained model, in fp32, with the tokenizer's special token in its configs."""
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    special = tokenizer.bos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.blocks,
        n_head=recipe.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=special,
        eos_token_id=special,
    )
    torch.manual_seed(recipe.seed)
    model = GPT2LMHeadModel(config)
    # Padding is said here alone: in the model's config it makes transformers warn of every text that begins with BOS.
    model.generation_config = GenerationConfig(bos_token_id=special, eos_token_id=special, pad_token_id=special)
    return model


class LanguageModelTrainer:
    """The state of a training run and one step of it.

    Args:
        model: Trained in place.
        streams: Token stream of each source that `mixture` names.
        recipe: Sizes, rates and number of steps.
        special: Token put first in the rows.
    """

    def __init__(self, model: "GPT2LMHeadModel", streams: Mapping[str, Tensor], recipe: Recipe, special: int) -> None:
        self.model, self.recipe, self.step_count = model, recipe, 0
        self._special = special
        self._windows = {name: Windows(tokens, recipe.context, recipe.seed) for name, tokens in streams.items()}
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
        chosen = set(map(id, matrices))
        rest = [p for p in model.parameters() if id(p) not in chosen]
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (Muon(matrices, recipe.matrix_rate), recipe.matrix_rate),
            (torch.optim.AdamW(rest, recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0), recipe.other_rate),
        ]
        self._loss = torch.compile(self._loss_of)

    def step(self) -> float:
        """Take one optimizer step and return its loss in nats per token."""
        rows = self._rows()
        loss = self._loss(rows[:, :-1], rows[:, 1:])
        torch.autograd.backward(loss)
        factor = rate_factor(self.step_count / self.recipe.steps, self.recipe)
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step_count += 1
        return loss.item()

    def _loss_of(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(input_ids=inputs, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def _rows(self) -> Int[Tensor, "rows length"]:
        random = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step_count)
        shares = mixture(self.step_count / self.recipe.steps)
        weights = torch.tensor([shares[name] for name in self._windows])
        drawn = torch.multinomial(weights, self.recipe.rows, replacement=True, generator=random)
        counts = drawn.bincount(minlength=len(weights)).tolist()
        rows = torch.cat([w.take(n) for w, n in zip(self._windows.values(), counts, strict=True) if n])
        rows[torch.rand(len(rows), generator=random) < 0.9, 0] = self._special
        return rows

    def save(self, path: Path) -> None:
        """Write all that a resumed run needs, whole or not at all."""
        state = {
            "step": self.step_count,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self._optimizers],
            "taken": {name: windows.taken for name, windows in self._windows.items()},
        }
        aside = path.with_suffix(".part")
        torch.save(state, aside)
        aside.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.step_count = state["step"]
        self.model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name, windows in self._windows.items():
            windows.taken = state["taken"][name]


def rate_factor(progress: float, recipe: Recipe) -> float:
    """Return the multiple of the peak rate at a point of the training: up, flat, then linearly down to 0."""
    return min(1.0, progress / recipe.warmup + 1e-3, (1 - progress) / recipe.decay)


def train_language_model(
    trainer: LanguageModelTrainer, *, checkpoint: Path, every: int, progress: Callable[[int], None] | None = None
) -> None:
    """Run the trainer to its last step, from its checkpoint when there is one.

    Args:
        trainer: A new one; its model is trained in place.
        checkpoint: File to resume from and to save to.
        every: Steps between two saves.
        progress: Called with the step count after each save.
    """
    if checkpoint.exists():
        trainer.resume(checkpoint)
    steps = trainer.recipe.steps
    bar = tqdm(total=steps, initial=trainer.step_count, unit="step", mininterval=5)
    mean_loss = math.nan
    while trainer.step_count < steps:
        loss = trainer.step()
        mean_loss = loss if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss
        bar.update()
        bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
        if trainer.step_count % every == 0 or trainer.step_count == steps:
            trainer.save(checkpoint)
            if progress is not None:
                progress(trainer.step_count)
    bar.close()


@torch.no_grad()
def bits_per_byte(model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerFast", texts: Iterable[str]) -> float:
    """Return the bits that the model needs per byte of the texts.

    Each text is cut into windows of the beginning-of-text token and context - 1 tokens that overlap by one: a window
    predicts all but the token it shares with the one before, so every token is predicted once.
    Sum of nats / ln 2 / bytes of UTF-8.
    """
    stride = model.config.n_positions - 2
    nats, size = 0.0, 0
    for text in texts:
        ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        size += len(text.encode())
        for first in range(0, len(ids), stride):
            shared = min(first, 1)
            window = F.pad(ids[first - shared : first + stride], (1, 0), value=tokenizer.bos_token_id)
            logits = model(input_ids=window[None, :-1]).logits[0, shared:]
            nats += float(F.cross_entropy(logits.float(), window[1 + shared :], reduction="sum"))
    return nats / math.log(2) / size
