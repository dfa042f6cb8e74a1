"""What the demo computes, without a page: streamed generation, features of a prompt, the cost of edits.

One generation is a batch of two rows, row 0 as the model is and row 1 under the edits. An edit is open only while the
model runs one step, in the thread that runs it, so that any number of users share one model without seeing each other;
nothing is held open across a ``yield``, where gradio may go on in another thread.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from hfsae.attach import Attachment
from hfsae.demo.render import Token
from hfsae.demo.state import REPETITION_PENALTY, EditChoice, Request
from hfsae.edits import Edit
from hfsae.errors import InvalidValue, OutOfRange

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Streamed:
    """Where a generation stands: both rows so far, prompt included."""

    prompt: int
    """Tokens of the prompt."""
    default: tuple[Token, ...]
    steered: tuple[Token, ...]
    done: bool = False


@dataclass
class _Row:
    """One of the two texts while it grows."""

    ids: list[int]
    generator: torch.Generator
    values: list[float] = field(default_factory=list)
    ended: bool = False


@dataclass(frozen=True)
class Engine:
    """A model with one dictionary attached, and its tokenizer."""

    attachment: Attachment
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def context(self) -> int:
        """Most tokens that the model takes, prompt and continuation together."""
        return int(getattr(self.attachment.model.config, "max_position_embeddings", 2048))

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, which must leave room to continue."""
        ids = [int(i) for i in self.tokenizer(text)["input_ids"]]
        if not 0 < len(ids) < self.context:
            raise InvalidValue(
                f"The prompt has {len(ids)} tokens. The model takes 1 to {self.context - 1}. Shorten it."
            )
        return ids

    def edit(self, choices: tuple[EditChoice, ...], rows: list[int] | None = None) -> Edit | None:
        """The edits as one, or None where there are none."""
        width = self.attachment.dictionary.config.d_sae
        for choice in choices:
            if choice.feature >= width:
                raise OutOfRange(f"Feature {choice.feature} does not exist. Expected 0 to {width - 1}.")
        edits = [_make(self.attachment, choice, rows) for choice in choices]
        return reduce(or_, edits) if edits else None

    def stream(self, request: Request, watch: int | None = None) -> Iterator[Streamed]:
        """Generate both texts token by token; ``watch`` is the feature whose activation tints them."""
        prompt = self.encode(request.prompt)
        rows = [_Row(list(prompt), torch.Generator().manual_seed(request.seed)) for _ in range(2)]
        edit = self.edit(request.active, rows=[1])
        cache, step = None, torch.tensor([prompt, prompt])
        for _ in range(min(request.tokens, self.context - len(prompt))):
            logits, cache, features = self._forward(step, cache, edit, watch)
            for row, values in zip(rows, features, strict=True):
                row.values.extend(values)
            step = torch.stack([self._next(row, logits[i], request.temperature) for i, row in enumerate(rows)])
            yield self._streamed(len(prompt), rows)
            if all(row.ended for row in rows):
                break
        yield self._streamed(len(prompt), rows, done=True)

    def _forward(
        self, ids: Tensor, cache: Any, edit: Edit | None, watch: int | None
    ) -> tuple[Tensor, Any, list[list[float]]]:
        """One step of the model on both rows: the last logits, the cache, and the watched feature on the new tokens."""
        model = self.attachment.model
        with torch.inference_mode(), self.attachment.record() as record:
            arguments = {"input_ids": ids.to(model.device), "past_key_values": cache, "use_cache": True}
            if edit is None:
                output = model(**arguments)
            else:
                with edit:
                    output = model(**arguments)
        fired = [[0.0] * ids.shape[1]] * 2
        if watch is not None:
            fired = record[0].at([watch])[..., 0].float().tolist()
        return output.logits[:, -1].float().cpu(), output.past_key_values, fired

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
        row.ids.append(int(chosen))
        row.ended = int(chosen) == self.tokenizer.eos_token_id
        return chosen

    def _streamed(self, prompt: int, rows: list[_Row], done: bool = False) -> Streamed:
        texts = []
        for row in rows:
            pieces = self.pieces(row.ids)
            values = row.values + [0.0] * (len(pieces) - len(row.values))
            texts.append(tuple(Token(piece, value) for piece, value in zip(pieces, values, strict=False)))
        return Streamed(prompt, texts[0], texts[1], done)

    def pieces(self, ids: list[int]) -> list[str]:
        """The text of each token; together they are the text. Half a character shows with the token that ends it."""
        texts, told = [], 0
        for end in range(1, len(ids) + 1):
            text = self.tokenizer.decode(ids[:end])
            whole = "" if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids) else text[told:]
            told += len(whole)
            texts.append(whole)
        return texts

    def inspect(self, text: str, k: int = 8) -> list[tuple[str, list[tuple[int, float]]]]:
        """Each token of a text with its k strongest features and their activations."""
        ids = self.encode(text)
        with torch.inference_mode(), self.attachment.record() as record:
            self.attachment.model(input_ids=torch.tensor([ids], device=self.attachment.model.device))
        features = record[0]
        found = []
        for position, piece in enumerate(self.pieces(ids)):
            indices, values = features[0, position]
            found.append((piece, list(zip(indices[:k].tolist(), values[:k].tolist(), strict=True))))
        return found

    def contrast(self, text: str, other: str, k: int = 12) -> list[tuple[int, float]]:
        """The features whose mean activation differs most between two texts; positive: stronger in the first."""
        means = []
        for one in (text, other):
            with torch.inference_mode(), self.attachment.record() as record:
                self.attachment.model(input_ids=torch.tensor([self.encode(one)], device=self.attachment.model.device))
            means.append(record[0].to_dense()[0].float().mean(0))
        difference = means[0] - means[1]
        chosen = difference.abs().topk(k).indices
        return [(int(i), float(difference[i])) for i in chosen if difference[i] != 0]

    def cost(self, choices: tuple[EditChoice, ...], text: str) -> "Cost":
        """What the edits do to the model's predictions on a fixed text."""
        ids = torch.tensor([self.encode(text)[: self.context]], device=self.attachment.model.device)
        edit = self.edit(choices)
        with torch.inference_mode():
            clean = self.attachment.model(input_ids=ids).logits[0].float().log_softmax(-1)
            if edit is None:
                edited = clean
            else:
                with edit:
                    edited = self.attachment.model(input_ids=ids).logits[0].float().log_softmax(-1)
        target = ids[0, 1:, None]
        return Cost(
            kl=float((clean.exp() * (clean - edited)).sum(-1).mean()),
            ce_clean=-float(clean[:-1].gather(-1, target).mean()),
            ce_edited=-float(edited[:-1].gather(-1, target).mean()),
            tokens=ids.shape[1],
        )


@dataclass(frozen=True)
class Cost:
    """KL(clean || edited) and cross-entropy, in nats per token, on a stated number of tokens."""

    kl: float
    ce_clean: float
    ce_edited: float
    tokens: int


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
