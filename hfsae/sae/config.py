"""`SAEConfig`: what is needed to rebuild a dictionary and to know where it belongs; nothing about training it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal
from warnings import warn

from hfsae.errors import HfsaeWarning, InvalidType, InvalidValue, did_you_mean
from hfsae.sae.architectures import ARCHITECTURES, Architecture

DTYPES = ("float32", "bfloat16", "float16", "float64")
_CHOICES: dict[str, tuple[str, ...]] = {
    "architecture": tuple(ARCHITECTURES),
    "b_pre": ("tied", "own", "none"),
    "normalize": ("none", "scale", "layer_norm"),
    "dtype": DTYPES,
    "io": ("output", "input"),
}
_SIZES = ("d_in", "d_sae", "d_out", "k")
_LAYERS = ("layer", "write_layer")
_NAMES = ("site", "module", "base_model", "base_revision", "stack", "write_site", "write_module")
_FLAGS = ("skip", "exclude_special_tokens", "exclude_first_position")
_POSITIVE = ("norm_outlier", "scale")
_REQUIRED = ("architecture", "d_in", "d_sae")
# A width that no dictionary has: 2**24 features are the most ever published, 2**38 weights are 1 TB in fp32.
_WIDEST, _MOST_WEIGHTS = 2**26, 2**38


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """What a dictionary is and where it belongs.

    Raises: InvalidValue, InvalidType: when a field has a value or a type that cannot work.
    Example:
        >>> SAEConfig(architecture="topk", d_in=768, d_sae=24576, k=32, site="resid_post", layer=8).place
        'resid_post.layer_8'
    """

    architecture: str
    """A name in `ARCHITECTURES`."""
    d_in: int
    """Width of the activations it reads."""
    d_sae: int
    """Number of features."""
    d_out: int | None = None
    """Width of the activations it writes, in a transcoder; None writes what it reads."""
    k: int | None = None
    """Most features kept per token (topk, and with room to spare refined_topk and matching_pursuit, which stop at a
    threshold); elsewhere the mean L0 it was trained for."""
    b_pre: Literal["tied", "own", "none"] = "tied"
    """What the encoder subtracts from x: b_dec, a parameter of its own, or nothing."""
    normalize: Literal["none", "scale", "layer_norm"] = "none"
    """What is done to x first; undone at the output where the dictionary writes what it reads."""
    skip: bool = False
    """It adds `W_skip @ x` (of the raw x) to what it writes."""
    dtype: str = "float32"
    """Of its weights, and of its arithmetic."""
    site: str | None = None
    """Where in a model it reads, with `layer`."""
    layer: int | None = None
    """Block of the model, from 0."""
    module: str | None = None
    """Path of the module it reads at, instead of a site."""
    base_model: str | None = None
    """Hub id of the model it was trained on."""
    base_revision: str | None = None
    """Commit of that model."""
    exclude_special_tokens: bool = True
    """Special tokens are left as they are when it is spliced in."""
    exclude_first_position: bool = False
    """So is the first real token of each row."""
    norm_outlier: float | None = None
    """So is a token whose norm exceeds this many times the median norm; None excludes none."""
    io: Literal["output", "input"] = "output"
    """Which side of `module` it reads."""
    stack: str | None = None
    """Which stack of blocks `layer` counts in, in a model with several."""
    write_site: str | None = None
    """Where a transcoder writes."""
    write_layer: int | None = None
    """Block in which a transcoder writes."""
    write_module: str | None = None
    """Path of the module a transcoder writes at, instead of a site."""
    scale: float | None = None
    """What x is multiplied by, with `normalize="scale"`."""
    group_sizes: tuple[int, ...] | None = None
    """Matryoshka: features in each group, outermost last; they sum to d_sae."""
    training: Mapping[str, Any] | None = field(default=None, hash=False)
    """How it came to be (data, tokens, seed): kept and shown, never interpreted."""

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            _check_choice(name, getattr(self, name), known)
        for name in _SIZES:
            _check_integer(name, getattr(self, name), low=1, required=name in _REQUIRED)
        for name in _LAYERS:
            _check_integer(name, getattr(self, name), low=0)
        for name in _FLAGS:
            _check_type(name, getattr(self, name), bool, "True or False")
        for name in _NAMES:
            _check_name(name, getattr(self, name))
        for name in _POSITIVE:
            _check_positive(name, getattr(self, name))
        if self.training is not None:
            _check_type("training", self.training, Mapping, "a mapping")
        _check_widths(self)
        _check_architecture(self)
        _check_groups(self)

    @property
    def d_write(self) -> int:
        """Width of what it writes."""
        return self.d_in if self.d_out is None else self.d_out

    @property
    def is_transcoder(self) -> bool:
        """It writes elsewhere than it reads."""
        return any(v is not None for v in (self.d_out, self.write_site, self.write_layer, self.write_module))

    @property
    def row(self) -> Architecture:
        """Its row in `ARCHITECTURES`."""
        return ARCHITECTURES[self.architecture]

    @property
    def place(self) -> str:
        """The name of its folder: where it reads and, for a transcoder, where it writes."""
        read = _place(self.stack, self.site, self.layer, self.module) or "dictionary"
        if self.module is not None and self.io == "input":
            read += ".input"
        write = _place(None, self.write_site, self.write_layer, self.write_module)
        return f"{read}.to.{write}" if write else read

    def to_dict(self) -> dict[str, Any]:
        """Return its fields as JSON can hold them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["group_sizes"] = None if self.group_sizes is None else list(self.group_sizes)
        values["training"] = None if self.training is None else dict(self.training)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SAEConfig":
        """Build it from its `to_dict`; an unknown field warns by name, since a newer writer may add some.

        Raises: InvalidValue, InvalidType: when a field is missing or cannot work.
        """
        known = {f.name for f in fields(cls)}
        missing = [name for name in _REQUIRED if name not in values]
        if missing:
            raise InvalidValue(f"The config has no {missing[0]!r}. A dictionary needs {', '.join(_REQUIRED)}. Add it.")
        unknown = sorted(str(name)[:80] for name in values if name not in known)
        if unknown:
            warn(f"Unknown config fields are ignored: {', '.join(unknown[:10])}.", HfsaeWarning, stacklevel=2)
        chosen = {name: value for name, value in values.items() if name in known}
        if isinstance(chosen.get("group_sizes"), list):
            chosen["group_sizes"] = tuple(chosen["group_sizes"])
        return cls(**chosen)


def _shown(value: object) -> str:
    """Return a value as an error may hold it: a hostile config can hold 50 MB or an integer beyond str()'s limit."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)):
        return repr(value[:60]) + ("..." if len(value) > 60 else "")
    if isinstance(value, (int, float, bool, type(None))):
        return repr(value)
    return f"a {type(value).__name__}"


def _check_type(name: str, value: object, kind: type, wanted: str) -> None:
    if not isinstance(value, kind):
        raise InvalidType(f"{name}={_shown(value)} is of type {type(value).__name__}. It must be {wanted}.")


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    _check_type(name, value, str, "a string")
    if value not in known:
        raise InvalidValue(f"{name}={_shown(value)} is unknown.{did_you_mean(str(value)[:60], known)}")


def _check_integer(name: str, value: object, *, low: int, required: bool = False) -> None:
    if value is None and not required:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidType(f"{name}={_shown(value)} is of type {type(value).__name__}. It must be an integer.")
    if not low <= value <= _WIDEST:
        raise InvalidValue(f"{name}={_shown(value)} is out of range. It must be {low} to {_WIDEST}.")


def _check_name(name: str, value: object) -> None:
    if value is None:
        return
    _check_type(name, value, str, "a string")
    if not value or len(str(value)) > 500 or not str(value).isprintable():
        raise InvalidValue(f"{name}={_shown(value)} is no name. It must be 1 to 500 printable characters.")


def _check_positive(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidType(f"{name}={_shown(value)} is of type {type(value).__name__}. It must be a number.")
    if not (0 < value < math.inf):
        raise InvalidValue(f"{name}={_shown(value)} is out of range. It must be finite and above 0.")


def _check_widths(config: SAEConfig) -> None:
    if config.d_sae * max(config.d_in, config.d_write) > _MOST_WEIGHTS:
        shape = f"d_in={config.d_in}, d_sae={config.d_sae}, d_out={config.d_out}"
        raise InvalidValue(f"{shape} make more than {_MOST_WEIGHTS} weights. No dictionary is that large. Check them.")
    if config.b_pre == "tied" and config.d_write != config.d_in:
        raise InvalidValue(
            f"b_pre='tied' subtracts b_dec [{config.d_write}] from x [{config.d_in}]. "
            "The widths must be equal. Use b_pre='none' or b_pre='own'."
        )
    if config.k is not None and config.k > config.d_sae:
        raise InvalidValue(f"k={config.k} is out of range. There are only d_sae={config.d_sae} features. Lower k.")
    if (config.normalize == "scale") != (config.scale is not None):
        raise InvalidValue(
            f"normalize={config.normalize!r} with scale={config.scale!r} do not fit. "
            "A scale is needed with normalize='scale' and nowhere else."
        )
    if config.normalize == "layer_norm" and config.d_in < 2:
        raise InvalidValue("normalize='layer_norm' with d_in=1 divides by no variance. It needs d_in of 2 or more.")


def _check_architecture(config: SAEConfig) -> None:
    row = config.row
    if row.needs_k and config.k is None:
        raise InvalidValue(f"k=None does not fit {row.name!r}. It needs the number of features kept per token. Set k.")
    if config.is_transcoder and not row.transcodes:
        raise InvalidValue(f"{row.name!r} cannot be a transcoder: its encoder subtracts what it decodes. Drop d_out.")
    if config.skip and not config.is_transcoder:
        raise InvalidValue(
            "skip=True in a dictionary that writes what it reads lets x pass around the features. "
            "Only a transcoder can skip. Set d_out, or write_site."
        )


def _check_groups(config: SAEConfig) -> None:
    sizes = config.group_sizes
    if sizes is None:
        return
    _check_type("group_sizes", sizes, tuple, "a tuple of integers")
    if len(sizes) > 1000:
        raise InvalidValue(f"group_sizes has {len(sizes)} groups. At most 1000 make sense.")
    for size in sizes:
        _check_integer("group_sizes", size, low=1, required=True)
    if not config.row.nested:
        raise InvalidValue(f"group_sizes do not fit {config.architecture!r}. Only 'matryoshka' has groups. Drop them.")
    if sum(sizes) != config.d_sae:
        raise InvalidValue(f"group_sizes sum to {sum(sizes)}. They must sum to d_sae={config.d_sae}.")


def _place(stack: str | None, site: str | None, layer: int | None, module: str | None) -> str:
    parts = [part for part in (stack, site or module, None if layer is None else f"layer_{layer}") if part]
    # A folder name: module paths of a ModuleDict may hold any character, a leading dot would climb or hide.
    return re.sub(r"[^\w.-]", "_", ".".join(parts)).lstrip(".")
