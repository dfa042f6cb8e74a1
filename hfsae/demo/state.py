"""What a user of the demo has chosen, checked, and its three other forms: a URL, JSON and Python.

Everything comes from outside, through the page or the API, so all is checked for type, finiteness, range and length.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from hfsae.errors import InvalidType, InvalidValue, did_you_mean

MAX_PROMPT = 4_000
MAX_TOKENS = 200
MAX_EDITS = 12
MAX_STRENGTH = 1_000.0
MAX_SEED = 2**31 - 1
REPETITION_PENALTY = 1.1
"""Greedy text of small models loops without one."""


@dataclass(frozen=True)
class Unit:
    """What the value of an edit counts, and the ends of its slider."""

    words: str
    low: float
    high: float
    of_max: bool = False
    """The ends are multiples of the feature's largest activation."""


KINDS: dict[str, dict[str, Unit]] = {
    "steer": {
        "max": Unit("× its maximum", -2.0, 2.0),
        "norm": Unit("× mean norm of the stream", -1.0, 1.0),
        "activation": Unit("raw", -2.0, 2.0, of_max=True),
    },
    "set": {"activation": Unit("raw", 0.0, 1.5, of_max=True)},
    "scale": {"factor": Unit("× what it is", -1.0, 3.0)},
    "clamp": {"activation": Unit("raw, at most", 0.0, 1.0, of_max=True)},
    "ablate": {"": Unit("", 0.0, 0.0)},
}
"""Kinds of edit, with the units their value may have, the usual one first."""


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
                f"The unit {self.unit!r} does not fit {self.kind!r}. Expected one of {tuple(KINDS[self.kind])}."
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

    @property
    def short(self) -> str:
        """The edit in a URL: ``steer:3707:0.5``, its unit where it is not the usual one, a minus where it is off."""
        usual = next(iter(KINDS[self.kind]))
        parts = [self.kind, str(self.feature)]
        if self.kind != "ablate":
            parts += [f"{self.value:g}"] + [self.unit] * (self.unit != usual)
        return ("" if self.on else "-") + ":".join(parts)

    @classmethod
    def from_short(cls, text: str) -> "EditChoice":
        """Read what `short` wrote. Raises: ValueError: when it is nothing of the kind."""
        kind, feature, *rest = text.removeprefix("-").split(":")
        usual = next(iter(KINDS.get(kind, ("",))))
        value, unit = float(rest[0]) if rest else 0.0, rest[1] if len(rest) > 1 else usual
        return cls(kind=kind, feature=int(feature), value=value, unit=unit, on=not text.startswith("-"))


@dataclass(frozen=True, kw_only=True)
class Request:
    """All that one generation depends on."""

    prompt: str
    edits: tuple[EditChoice, ...] = ()
    tokens: int = 40
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    chat: bool = False
    """The prompt is the user's turn in the model's chat template."""

    def __post_init__(self) -> None:
        checked_text("prompt", self.prompt)
        if len(self.edits) > MAX_EDITS:
            raise InvalidValue(f"{len(self.edits)} edits are too many. At most {MAX_EDITS} at once. Remove some.")
        checked_int("tokens", self.tokens, 1, MAX_TOKENS)
        checked_float("temperature", self.temperature, 0.0, 5.0)
        checked_int("seed", self.seed, 0, MAX_SEED)
        if not isinstance(self.chat, bool):
            raise InvalidType(f"chat is a {type(self.chat).__name__}. Expected true or false.")

    @property
    def active(self) -> tuple[EditChoice, ...]:
        """The edits that are switched on."""
        return tuple(edit for edit in self.edits if edit.on)

    def to_query(self) -> str:
        """The part of a URL after the question mark that restores this state; what is as usual is left out."""
        usual = Request(prompt=self.prompt)
        query = {"prompt": self.prompt}
        if self.edits:
            query["edits"] = ",".join(edit.short for edit in self.edits)
        for name in ("tokens", "temperature", "seed", "chat"):
            value = getattr(self, name)
            if value != getattr(usual, name):
                query[name] = f"{value:g}" if name != "seed" else str(value)
        return urlencode(query, safe=":,")

    @classmethod
    def from_query(cls, query: Mapping[str, str] | str, default: "Request") -> "Request":
        """Restore a state from a URL; one without a prompt, or that cannot be read, is ``default``."""
        told = dict(parse_qsl(query)) if isinstance(query, str) else query
        if "prompt" not in told:
            return default
        try:
            return cls(
                prompt=told["prompt"],
                edits=tuple(EditChoice.from_short(text) for text in told.get("edits", "").split(",") if text),
                tokens=int(told.get("tokens", cls.tokens)),
                temperature=float(told.get("temperature", cls.temperature)),
                seed=int(told.get("seed", cls.seed)),
                chat=told.get("chat") == "1",
            )
        except ValueError:  # a link cut or edited by hand opens the page as it is without one
            return default

    def to_python(self, opening: str) -> str:
        """A script that does what the page does; ``opening`` loads ``model``, ``tok`` and attaches ``att``."""
        sampling = (
            f"do_sample=True, top_k=0, temperature={self.temperature:g}" if self.temperature else "do_sample=False"
        )
        if self.chat:
            turns = f"[{{'role': 'user', 'content': {self.prompt!r}}}]"
            asked = (
                f"tok.apply_chat_template({turns}, add_generation_prompt=True, return_dict=True, return_tensors='pt')"
            )
        else:
            asked = f"tok({self.prompt!r}, return_tensors='pt')"
        joined = " | ".join(edit.python for edit in self.active)
        options = f"max_new_tokens={self.tokens}, repetition_penalty={REPETITION_PENALTY}, {sampling}"
        call = f"ids = model.generate(**inputs, {options})"
        body = f"with {joined}:\n    {call}" if joined else call
        return (
            f"import torch\nimport hfsae\n{opening}\n\ninputs = {asked}\ntorch.manual_seed({self.seed})\n"
            f"{body}\nprint(tok.decode(ids[0], skip_special_tokens=True))"
        )


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
    except (ValueError, RecursionError) as error:
        raise InvalidValue("The edits cannot be read. Expected a JSON list of edits.") from error
    return edits_from_rows(rows)


def edits_from_rows(rows: object) -> tuple[EditChoice, ...]:
    """Check edits that came as a list of objects.

    Raises: InvalidValue, InvalidType: when they are nothing of the kind.
    """
    if not isinstance(rows, list) or len(rows) > MAX_EDITS:
        raise InvalidValue(f"The edits are no list of at most {MAX_EDITS}. Expected a JSON list of edits.")
    return tuple(_edit_from(row) for row in rows)


def _edit_from(row: Any) -> EditChoice:
    known = {"kind", "feature", "value", "unit", "on"}
    if not isinstance(row, dict) or not set(row) <= known or not {"kind", "feature"} <= set(row):
        raise InvalidValue(f"An edit cannot be read. Expected an object with kind, feature and any of {sorted(known)}.")
    if not isinstance(row["kind"], str) or not isinstance(row.get("on", True), bool):
        raise InvalidType("An edit has a field of the wrong type. Expected kind as text and on as true or false.")
    unit = row.get("unit", next(iter(KINDS.get(row["kind"], ("",)))))
    if not isinstance(unit, str):
        raise InvalidType(f"The unit of an edit is a {type(unit).__name__}. Expected text.")
    feature = checked_int("feature", row["feature"], 0, 2**31)
    return EditChoice(**{**row, "unit": unit, "feature": feature, "value": row.get("value", 0.0)})


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
    if not low <= value <= high:  # so is every comparison with NaN
        raise InvalidValue(f"{name}={_shortened(value)} is out of range. Expected a number from {low:g} to {high:g}.")
    return float(value)


def _shortened(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) or abs(value) < 10**15 else "a number of many digits"


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
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InvalidValue(f"The {name} holds half a character (a lone surrogate). Expected Unicode text. Remove it.")
    return value
