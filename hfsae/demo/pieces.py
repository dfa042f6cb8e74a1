"""The text of each token while tokens come one by one."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST_CHARACTER = 4
"""Bytes, and so most tokens, of one character in UTF-8."""


class Pieces:
    """Tokens and their texts, which together are the text; special tokens have none.

    Half a character shows with the token that ends it. Each step decodes only the last few tokens, with those before
    them: a tokenizer may write a token differently at the start of a text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", ids: Iterable[int] = ()) -> None:
        self.ids: list[int] = []
        self.texts: list[str] = []
        self._tokenizer = tokenizer
        self._from = 0
        self._told = 0
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Append a token and its text."""
        self.ids.append(token)
        waiting = len(self.ids) - self._told < _LONGEST_CHARACTER
        text = self._untold()
        if waiting and text.endswith("\N{REPLACEMENT CHARACTER}"):
            self.texts.append("")
        else:
            self.texts.append(text)
            self._from, self._told = self._told, len(self.ids)

    def finish(self) -> "Pieces":
        """Show what waits for the rest of a character that will not come, and return this."""
        if self._told < len(self.ids):
            self.texts[-1] = self._untold()
            self._told = len(self.ids)
        return self

    def _untold(self) -> str:
        before = self._decoded(self._from, self._told)
        return self._decoded(self._from, len(self.ids))[len(before) :]

    def _decoded(self, start: int, stop: int) -> str:
        text = self._tokenizer.decode(
            self.ids[start:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)
