"""What a user of the demo has chosen, checked, and its three other forms: a URL, JSON and Python.

Everything comes from outside, through the page or the API, so all is checked for type, finiteness, range and length.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode

from hfsae.errors import InvalidType, InvalidValue, did_you_mean

MAX_PROMPT = 4_000
MAX_TOKENS = 200
MAX_EDITS = 12
MAX_STRENGTH = 1_000.0
REPETITION_PENALTY = 1.1
"""Greedy text of small models loops without one."""

KINDS: dict[str, tuple[str, ...]] = {
    "steer": ("max", "norm", "activation"),
    "set": ("activation",),
    "scale": ("factor",),
    "clamp": ("activation",),
    "ablate": ("",),
}
"""Kinds of edit, with the units their value may have."""

UNIT_WORDS = {
    "max": "× the feature's maximum",
    "norm": "× the mean activation norm",
    "activation": "in units of the activation",
    "factor": "× its activation",
    "": "",
}


@dataclass(frozen=True, kw_only=True)
class EditChoice:
    """One line of the list of edits."""

    kind: str
    feature: int
    value: float = 0.0
    """Strength, target, factor or upper limit, by kind; ablate has none."""
    unit: str = ""
    on: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidValue(f"The kind of edit {self.kind!r} is unknown.{did_you_mean(str(self.kind), KINDS)}")
        if self.unit not in KINDS[self.kind]:
            raise InvalidValue(
                f"The unit {self.unit!r} does not fit {self.kind!r}. Expected one of {KINDS[self.kind]}."
            )
        checked_int("feature", self.feature, 0, 2**31)
        checked_float(f"value of {self.kind}", self.value, -MAX_STRENGTH, MAX_STRENGTH)

    @property
    def python(self) -> str:
        """The call on an attachment that makes this edit."""
        value = f"{self.value:g}"
        return {
            "steer": f"att.steer({self.feature}, {value}, unit={self.unit!r})",
            "set": f"att.set({self.feature}, {value})",
            "scale": f"att.scale({self.feature}, {value})",
            "clamp": f"att.clamp({self.feature}, max={value})",
            "ablate": f"att.ablate({self.feature})",
        }[self.kind]


@dataclass(frozen=True, kw_only=True)
class Request:
    """All that one generation depends on."""

    prompt: str
    edits: tuple[EditChoice, ...] = ()
    tokens: int = 40
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0

    def __post_init__(self) -> None:
        checked_text("prompt", self.prompt)
        if len(self.edits) > MAX_EDITS:
            raise InvalidValue(f"{len(self.edits)} edits are too many. At most {MAX_EDITS} at once. Remove some.")
        checked_int("tokens", self.tokens, 1, MAX_TOKENS)
        checked_float("temperature", self.temperature, 0.0, 5.0)
        checked_int("seed", self.seed, 0, 2**31 - 1)

    @property
    def active(self) -> tuple[EditChoice, ...]:
        """The edits that are switched on."""
        return tuple(edit for edit in self.edits if edit.on)

    def to_query(self) -> str:
        """The part of a URL after the question mark that restores this state."""
        return urlencode(
            {
                "prompt": self.prompt,
                "edits": edits_to_json(self.edits),
                "tokens": self.tokens,
                "temperature": f"{self.temperature:g}",
                "seed": self.seed,
            }
        )

    @classmethod
    def from_query(cls, query: Mapping[str, str] | str, default: "Request") -> "Request":
        """Restore a state from a URL; what is missing or unreadable there is as in ``default``."""
        if isinstance(query, str):
            query = {name: values[0] for name, values in parse_qs(query).items()}
        try:
            return cls(
                prompt=query.get("prompt", default.prompt),
                edits=edits_from_json(query["edits"]) if "edits" in query else default.edits,
                tokens=int(query.get("tokens", default.tokens)),
                temperature=float(query.get("temperature", default.temperature)),
                seed=int(query.get("seed", default.seed)),
            )
        except ValueError:  # a link cut or edited by hand opens the page as it is without one
            return default

    def to_python(self, opening: str) -> str:
        """A script that does what the page does; ``opening`` loads ``model``, ``tok`` and attaches ``att``."""
        sampling = (
            f"do_sample=True, top_k=0, temperature={self.temperature:g}" if self.temperature else "do_sample=False"
        )
        joined = " | ".join(edit.python for edit in self.active)
        options = f"max_new_tokens={self.tokens}, repetition_penalty={REPETITION_PENALTY}, {sampling}"
        call = f"ids = model.generate(**tok({self.prompt!r}, return_tensors='pt'), {options})"
        body = f"with {joined}:\n    {call}" if joined else call
        seed = f"torch.manual_seed({self.seed})"
        return f"import torch\nimport hfsae\n{opening}\n\n{seed}\n{body}\nprint(tok.decode(ids[0]))"


def edits_to_json(edits: Sequence[EditChoice]) -> str:
    """The edits as a compact JSON list."""
    return json.dumps([asdict(edit) for edit in edits], separators=(",", ":"))


def edits_from_json(text: str) -> tuple[EditChoice, ...]:
    """Read edits from JSON, refusing whatever is not exactly a list of them.

    Raises:
        InvalidValue: when the text is no JSON list of edits with known fields.
    """
    if not isinstance(text, str) or len(text) > 10_000:
        raise InvalidValue("The edits are no JSON text of at most 10,000 characters. Expected a list of edits.")
    try:
        rows = json.loads(text or "[]")
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidValue("The edits cannot be read. Expected a JSON list of edits.") from error
    if not isinstance(rows, list) or len(rows) > MAX_EDITS:
        raise InvalidValue(f"The edits are no list of at most {MAX_EDITS}. Expected a JSON list of edits.")
    return tuple(_edit_from(row) for row in rows)


def _edit_from(row: Any) -> EditChoice:
    known = {"kind", "feature", "value", "unit", "on"}
    if not isinstance(row, dict) or not set(row) <= known or not {"kind", "feature"} <= set(row):
        raise InvalidValue(f"An edit cannot be read. Expected an object with kind, feature and any of {sorted(known)}.")
    if not isinstance(row["kind"], str) or not isinstance(row.get("on", True), bool):
        raise InvalidValue("An edit has a field of the wrong type. Expected kind as text and on as true or false.")
    unit = row.get("unit", KINDS.get(row["kind"], ("",))[0])
    return EditChoice(**{**row, "unit": unit, "value": row.get("value", 0.0)})


def checked_int(name: str, value: object, low: int, high: int) -> int:
    """Return ``value`` as an int of ``low`` to ``high``, or raise; 3.0 is 3, but true is no number."""
    number = checked_float(name, value, low, high)
    if number != int(number):
        raise InvalidValue(f"{name}={value!r} is no whole number. Expected {low} to {high}.")
    return int(number)


def checked_float(name: str, value: object, low: float | int, high: float | int) -> float:
    """Return ``value`` as a finite float of ``low`` to ``high``, or raise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidType(f"{name} is a {type(value).__name__}. Expected a number from {low:g} to {high:g}.")
    if not math.isfinite(value) or not low <= value <= high:
        raise InvalidValue(f"{name}={value!r} is out of range. Expected a number from {low:g} to {high:g}.")
    return float(value)


def checked_text(name: str, value: object, longest: int = MAX_PROMPT) -> str:
    """Return a text that is not empty nor longer than ``longest``, or raise; null bytes are refused."""
    if not isinstance(value, str):
        raise InvalidType(f"The {name} is a {type(value).__name__}. Expected text.")
    if not value.strip():
        raise InvalidValue(f"The {name} is empty. Type some text.")
    if len(value) > longest:
        raise InvalidValue(f"The {name} has {len(value):,} characters. At most {longest:,} are read. Shorten it.")
    if "\x00" in value:
        raise InvalidValue(f"The {name} holds a null byte. Expected plain text. Remove it.")
    return value
