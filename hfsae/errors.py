"""The exceptions of hfsae and how they are worded.

A message reads: what is wrong, with the value; what was expected; what to do, or the nearest name and the known ones.
Every class is an `HfsaeError` and the builtin that a caller would catch.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class HfsaeError(Exception):
    """Base of every error that hfsae raises on purpose."""


class InvalidValue(HfsaeError, ValueError):
    """An argument, setting or tensor that cannot work."""


class InvalidType(HfsaeError, TypeError):
    """An argument of a type that cannot work."""


class SiteNotFound(HfsaeError, LookupError):
    """The model has no such site, or what it is cannot be proved."""


class OutOfRange(HfsaeError, IndexError):
    """A layer, feature or position beyond the last one."""


class CheckpointError(HfsaeError, ValueError):
    """A dictionary file whose content is damaged, hostile or not understood."""


class CheckpointNotFound(HfsaeError, FileNotFoundError):
    """No dictionary at that path or in that repository."""


class DictionaryNotFound(HfsaeError, LookupError):
    """No dictionary is registered for that model, layer and site."""


class Mismatch(HfsaeError, ValueError):
    """A dictionary and a model that do not belong together."""


class Unsupported(HfsaeError, NotImplementedError):
    """A combination that cannot be done exactly, and is refused."""


class HubError(HfsaeError, OSError):
    """The Hub could not be reached or refused."""


class TrainingError(HfsaeError, RuntimeError):
    """A training run that had to stop."""


class MissingPackage(HfsaeError, ImportError):
    """An optional package that this call needs is not installed."""


class HfsaeWarning(UserWarning):
    """Something the caller can act on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, then all of them.

    Example:
        >>> did_you_mean("resid_pots", ["resid_post", "mlp_out"])
        " Did you mean 'resid_post'? Known: mlp_out, resid_post."
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    return (f" Did you mean {close[0]!r}?" if close else "") + f" Known: {', '.join(names)}."
