"""Conversations as token ids: put through the tokenizer's chat template, with a mask of what the assistant says.

Where the template marks the assistant's turns itself ({% generation %}), its marks are taken. Most do not; there a turn
is what the conversation up to it has more than the conversation before it with the prompt to answer.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from hfsae.errors import InvalidType, InvalidValue

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def is_conversation(data: object) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    """Tell whether it is a list of messages, each with a "role" and a "content"."""
    if not isinstance(data, Sequence) or isinstance(data, str) or not len(data):
        return False
    return all(isinstance(each, Mapping) and {"role", "content"} <= set(each) for each in data)


def conversation_ids(messages: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[int]:
    """Return the ids of a conversation.

    Raises: InvalidType: without a tokenizer.  InvalidValue: when it has no chat template.
    """
    ids: list[int] = _encoded(messages, tokenizer)["input_ids"]
    return ids


def assistant_mask(messages: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[bool]:
    """Return, for each id of a conversation, whether the assistant says it, the end of its turn included.

    Raises: InvalidValue: when the template neither marks turns nor renders them one after the other.
    """
    whole = conversation_ids(messages, tokenizer)
    if _MARKS.search(str(tokenizer.chat_template)):
        marked = _encoded(messages, tokenizer, return_assistant_tokens_mask=True)
        return [bool(mark) for mark in marked["assistant_masks"]]
    mask = [False] * len(whole)
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _encoded(messages[:place], tokenizer, add_generation_prompt=True)["input_ids"] if place else []
        through = conversation_ids(messages[: place + 1], tokenizer)
        if whole[: len(through)] != through or through[: len(before)] != before:
            raise InvalidValue(
                "What the assistant says cannot be told from the rest: this chat template has no {% generation %} and "
                "writes a turn differently in what follows. Add the mark to tokenizer.chat_template, or leave "
                "assistant_only out."
            )
        mask[len(before) : len(through)] = [True] * (len(through) - len(before))
    return mask


def _encoded(messages: Sequence[Mapping[str, Any]], tokenizer: Any, **options: Any) -> Mapping[str, Any]:
    if tokenizer is None:
        raise InvalidType("The data are conversations and there is no tokenizer. Pass the model's own, tokenizer=...")
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidValue(
            "The data are conversations and the tokenizer has no chat template. "
            "Pass that of a chat model, set tokenizer.chat_template, or give texts."
        )
    encoded: Mapping[str, Any] = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, **options
    )
    return encoded
