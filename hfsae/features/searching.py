"""Find words in what is known of features: labels, contexts, promoted tokens."""

import re
from collections.abc import Sequence

from hfsae.errors import InvalidValue
from hfsae.features.card import Example


def pattern_of(words: str, regex: bool) -> re.Pattern[str]:
    """Return the pattern that finds the words as they are, or what the regular expression says, in any case.

    Raises: InvalidValue: when there are no words, or no such regular expression.
    """
    if not words.strip():
        raise InvalidValue("There is nothing to search for. Words were expected.")
    try:
        return re.compile(words if regex else re.escape(words), re.IGNORECASE)
    except re.error as error:
        raise InvalidValue(
            f"{words!r} is no regular expression: {error}. Correct it, or search with regex=False."
        ) from error


def score(
    pattern: re.Pattern[str], label: str, automatic: bool, promoted: Sequence[str], contexts: Sequence[Example]
) -> float:
    """Return how much a feature has to do with a pattern; 0 is nothing.

    A label that somebody gave counts most, then an automatic one, then the contexts, then the promoted tokens.
    """
    named = bool(pattern.search(label)) * (2.0 if automatic else 4.0)
    near = sum(_near(context, pattern) for context in contexts) / max(len(contexts), 1)
    return named + near + 0.5 * sum(bool(pattern.search(token)) for token in promoted) / max(len(promoted), 1)


def _near(example: Example, pattern: re.Pattern[str]) -> float:
    """1 where the words are at the token that fires, a quarter where they are elsewhere in the context."""
    if pattern.search("".join(example.tokens[max(0, example.at - 1) : example.at + 1])):
        return 1.0
    return 0.25 * bool(pattern.search("".join(example.tokens)))
