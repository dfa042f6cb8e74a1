"""What the demo computes, without a page: streamed generation, features of a text, the cost of edits.

One generation is a batch of two rows, row 0 as the model is and row 1 under the edits. An edit is open only while the
model runs one step, in the thread that runs it, so that any number of users share one model without seeing each other;
nothing is held open across a ``yield``, where gradio may go on in another thread.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from hfsae.attach import Attachment
from hfsae.attaching.edits import Edit
from hfsae.data.limits import longest_row, vocabulary_size
from hfsae.demo.pieces import Pieces
from hfsae.demo.state import REPETITION_PENALTY, EditChoice, Request, checked_text
from hfsae.errors import InvalidValue, OutOfRange
from hfsae.sae.sparse import SparseFeatures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[int]


@dataclass(frozen=True)
class Written:
    """A text so far: its tokens, and the activation of the watched feature on them."""

    ids: list[int]
    pieces: list[str]
    """The text of each token."""
    values: list[float]
    """Zeros where no feature is watched; the newest token has not been read yet."""


@dataclass(frozen=True)
class Streamed:
    """Where a generation stands: both texts so far, prompt included."""

    prompt: int
    """Tokens of the prompt."""
    default: Written
    steered: Written
    done: bool = False


@dataclass(frozen=True)
class Cost:
    """KL(clean || edited) and cross-entropy, in nats per token, on a stated number of tokens."""

    kl: float
    ce_clean: float
    ce_edited: float
    tokens: int


class _Row:
    """One of the two texts while it grows."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: Ids, seed: int) -> None:
        self.pieces = Pieces(tokenizer, prompt)
        self.generator = torch.Generator().manual_seed(seed)
        self.values: list[float] = []
        self.ended = False

    @property
    def ids(self) -> list[int]:
        return self.pieces.ids


@dataclass(frozen=True)
class Engine:
    """A model with one dictionary attached, and its tokenizer."""

    attachment: Attachment
    tokenizer: "PreTrainedTokenizerBase"
    cost_text: str
    """The fixed text on which the cost of edits is measured."""

    @property
    def context(self) -> int:
        """Most tokens that the model takes, prompt and continuation together."""
        return longest_row(self.attachment.model)

    @property
    def chats(self) -> bool:
        """Whether the tokenizer says how a conversation is written."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @cached_property
    def _ends(self) -> set[int]:
        """Tokens after which a text has ended."""
        declared = getattr(getattr(self.attachment.model, "generation_config", None), "eos_token_id", None)
        listed = declared if isinstance(declared, list) else [declared, self.tokenizer.eos_token_id]
        return {int(token) for token in listed if token is not None}

    def encode(self, text: str, *, chat: bool = False) -> list[int]:
        """Token ids of a prompt, which must leave room to continue; with ``chat``, as the user's turn of the template.

        Raises: InvalidValue: when it is too long, or the tokenizer has no chat template.
        """
        if chat and not self.chats:
            raise InvalidValue(
                "This model's tokenizer has no chat template. A plain prompt was expected. Uncheck chat."
            )
        if chat:
            turns = [{"role": "user", "content": text}]
            told: Any = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        else:
            told = self.tokenizer(text)
        ids = [int(i) for i in told["input_ids"]]
        if not 0 < len(ids) < self.context:
            raise InvalidValue(
                f"The prompt has {len(ids)} tokens. The model takes 1 to {self.context - 1}. Shorten it."
            )
        return ids

    def edit(self, choices: tuple[EditChoice, ...], rows: list[int] | None = None) -> Edit | None:
        """The edits as one, or None where there are none."""
        for choice in choices:
            self.check_feature(choice.feature)
        edits = [_make(self.attachment, choice, rows) for choice in choices]
        return reduce(or_, edits) if edits else None

    def check_feature(self, feature: int) -> int:
        """Return the feature, or raise `OutOfRange` where the dictionary has no such one."""
        width = self.attachment.dictionary.config.d_sae
        if not 0 <= feature < width:
            raise OutOfRange(f"Feature {feature} does not exist. Expected 0 to {width - 1}.")
        return feature

    def stream(self, request: Request, watch: int | None = None) -> Iterator[Streamed]:
        """Generate both texts token by token; ``watch`` is the feature whose activation comes with them."""
        prompt = self.encode(request.prompt, chat=request.chat)
        rows = [_Row(self.tokenizer, prompt, request.seed) for _ in range(2)]
        edit = self.edit(request.active, rows=[1])
        cache, step = None, torch.tensor([prompt, prompt])
        for _ in range(min(request.tokens, self.context - len(prompt))):
            logits, cache, values = self._forward(step, cache, edit, watch)
            for row, value in zip(rows, values, strict=True):
                row.values.extend(value)
            step = torch.stack([self._next(row, logits[i], request.temperature) for i, row in enumerate(rows)])
            if all(row.ended for row in rows):
                break
            yield self._streamed(len(prompt), rows)
        for row in rows:
            row.pieces.finish()
        yield self._streamed(len(prompt), rows, done=True)

    def _streamed(self, prompt: int, rows: list[_Row], done: bool = False) -> Streamed:
        default, steered = map(self._written, rows)
        return Streamed(prompt, default, steered, done)

    def _forward(
        self, ids: Tensor, cache: Any, edit: Edit | None, watch: int | None
    ) -> tuple[Tensor, Any, list[list[float]]]:
        """One step of the model on both rows: the last logits, the cache, and the watched feature on the new tokens."""
        model = self.attachment.model
        recording = nullcontext() if watch is None else self.attachment.record()
        with torch.inference_mode(), recording as record, edit or nullcontext():
            output = model(input_ids=ids.to(model.device), past_key_values=cache, use_cache=True)
        values = [[0.0] * ids.shape[1]] * 2
        if watch is not None and record is not None:
            values = record.at([watch])[..., 0].float().tolist()
        return output.logits[:, -1].float().cpu(), output.past_key_values, values

    def _next(self, row: _Row, logits: Tensor, temperature: float) -> Tensor:
        """Choose and append the row's next token; one that has ended is fed its last token again, unseen."""
        if row.ended:
            return torch.tensor([row.ids[-1]])
        logits, seen = logits.clone(), torch.tensor(sorted(set(row.ids)))
        penalised = logits[seen]
        logits[seen] = torch.where(penalised > 0, penalised / REPETITION_PENALTY, penalised * REPETITION_PENALTY)
        if temperature > 0:
            chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=row.generator)
        else:
            chosen = logits.argmax(keepdim=True)
        row.pieces.add(int(chosen))
        row.ended = int(chosen) in self._ends
        return chosen

    def _written(self, row: _Row) -> Written:
        ids = list(row.ids)
        values = row.values + [0.0] * (len(ids) - len(row.values))
        return Written(ids, list(row.pieces.texts), self._kept(ids, values))

    def _kept(self, ids: Ids, values: list[float]) -> list[float]:
        """The values, zero on the tokens that the dictionary does not stand for."""
        return [0.0 if out else value for out, value in zip(self._left_out(ids), values, strict=True)]

    def _left_out(self, ids: Ids) -> list[bool]:
        policy = self.attachment.dictionary.config
        special = set(self.tokenizer.all_special_ids) if policy.exclude_special_tokens else set()
        return [i in special or (n == 0 and policy.exclude_first_position) for n, i in enumerate(ids)]

    def _read(self, ids: Ids) -> SparseFeatures:
        """The features of a text, ``[1, tokens, d_sae]``."""
        return self.attachment.top_features(torch.tensor([list(ids)]), k=1).sparse

    def check_ids(self, ids: object) -> list[int]:
        """Return the tokens of a text that the page shows, which a client may have made up, or raise `InvalidValue`."""
        size = vocabulary_size(self.attachment.model) or len(self.tokenizer)
        if not isinstance(ids, list) or not 0 < len(ids) <= self.context:
            raise InvalidValue(f"There is no text. Expected 1 to {self.context} tokens. Generate one.")
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < size for i in ids):
            raise InvalidValue(f"The text holds an unknown token. Expected ids from 0 to {size - 1}. Generate it anew.")
        return ids

    def tint(self, ids: Ids, watch: int) -> list[float]:
        """The activation of one feature on each token of a text."""
        return self._kept(ids, self._read(ids).at([watch])[0, :, 0].float().tolist())

    def inspect(self, ids: Ids, k: int = 8) -> list[list[tuple[int, float]]]:
        """The k strongest features of each token and their activations; none where the dictionary does not apply."""
        codes = self._read(ids)
        found: list[list[tuple[int, float]]] = []
        for position, out in enumerate(self._left_out(ids)):
            indices, values = codes[0, position]
            found.append([] if out else list(zip(indices[:k].tolist(), values[:k].tolist(), strict=True)))
        return found

    def contrast(self, text: str, other: str, k: int = 12) -> list[tuple[int, float]]:
        """The features whose mean activation differs most between two texts; positive: stronger in the first."""
        means = [self._mean(self.encode(checked_text("text", one))) for one in (text, other)]
        difference = means[0] - means[1]
        chosen = difference.abs().topk(min(k, len(difference))).indices
        return [(int(i), float(difference[i])) for i in chosen if difference[i] != 0]

    def _mean(self, ids: Ids) -> Tensor:
        kept = [n for n, out in enumerate(self._left_out(ids)) if not out]
        if not kept:
            raise InvalidValue("The text has no token that the dictionary stands for. Type a longer one.")
        return self._read(ids).to_dense()[0, kept].float().mean(0).cpu()

    @cached_property
    def _cost_ids(self) -> Tensor:
        return torch.tensor([self.encode(self.cost_text)], device=self.attachment.model.device)

    @cached_property
    def typical(self) -> float:
        """The strongest activation on the fixed text: a scale for features whose maximum nobody recorded."""
        return float(self._read(self._cost_ids[0].tolist()).values.max())

    @cached_property
    def _clean(self) -> Tensor:
        """What the unedited model predicts on the fixed text."""
        return self._predicted(None)

    def _predicted(self, edit: Edit | None) -> Tensor:
        """Log-probabilities at each token of the fixed text, ``[tokens, vocabulary]``."""
        with torch.inference_mode(), edit or nullcontext():
            logits: Tensor = self.attachment.model(input_ids=self._cost_ids).logits[0]
            return logits.float().log_softmax(-1)

    def cost(self, choices: tuple[EditChoice, ...]) -> Cost:
        """What the edits do to the model's predictions on the fixed text."""
        edit = self.edit(choices)
        clean = self._clean
        edited = clean if edit is None else self._predicted(edit)
        target = self._cost_ids[0, 1:, None]
        return Cost(
            kl=float((clean.exp() * (clean - edited)).sum(-1).mean()),
            ce_clean=-float(clean[:-1].gather(-1, target).mean()),
            ce_edited=-float(edited[:-1].gather(-1, target).mean()),
            tokens=self._cost_ids.shape[1],
        )


def _make(attachment: Attachment, choice: EditChoice, rows: list[int] | None) -> Edit:
    """The edit of one choice; one line a kind, as in `state.KINDS`."""
    make = {
        "steer": lambda: attachment.steer(choice.feature, choice.value, unit=cast(Any, choice.unit), rows=rows),
        "set": lambda: attachment.set(choice.feature, choice.value, rows=rows),
        "scale": lambda: attachment.scale(choice.feature, choice.value, rows=rows),
        "clamp": lambda: attachment.clamp(choice.feature, max=choice.value, rows=rows),
        "ablate": lambda: attachment.ablate(choice.feature, rows=rows),
    }
    return make[choice.kind]()
