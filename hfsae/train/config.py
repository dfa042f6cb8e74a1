"""`TrainConfig`: how a dictionary is trained. What it is: `SAEConfig`; where it reads: the arguments of `train`."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hfsae.errors import InvalidType, InvalidValue, did_you_mean
from hfsae.sae.architectures import ARCHITECTURES

_DEFAULT_EXPANSION = 8
_BATCHES_WANTED = 4000
_SMALLEST_BATCH, _LARGEST_BATCH = 512, 4096


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, its schedule, and what keeps it steady."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's two moments."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    decay: float = 0.2
    """Share of the steps, the last ones, over which it falls to 0; every published recipe has it."""
    clip: float = 1.0
    """Largest norm of the gradient of all weights together."""

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas) or len(self.betas) != 2:
            raise InvalidValue(f"betas={self.betas!r} are out of range. Adam takes two numbers in [0, 1).")
        for name in ("warmup", "decay"):
            _check_share(name, getattr(self, name))
        if self.warmup + self.decay > 1:
            raise InvalidValue(f"warmup={self.warmup} and decay={self.decay} overlap. Their sum is at most 1.")
        check_positive("clip", self.clip)


@dataclass(frozen=True, kw_only=True)
class DeadConfig:
    """What is done about features that never fire."""

    after_firings: float = 50.0
    """A feature is dead when it did not fire while an average one was expected to fire so often: a clock that ticks in
    runs of any length, where one in tokens never does in short ones. Much lower, it mistakes rare features for dead."""
    reseed_until: float = 0.3
    """Until this share of the steps, dead features and duplicates start again from tokens that are explained badly."""
    split_until: float = 0.8
    """Until this share of the steps, dead features take a half of those that do the work of two."""
    duplicate_cosine: float = 0.9
    """Two features whose directions and encoders are closer than that are duplicates."""
    aux_coefficient: float = 1 / 32
    """Weight of the loss by which dead features explain the error, from then on (AuxK); 0 turns it off."""

    def __post_init__(self) -> None:
        check_positive("after_firings", self.after_firings)
        _check_share("reseed_until", self.reseed_until)
        _check_share("split_until", self.split_until)
        _check_share("duplicate_cosine", self.duplicate_cosine)
        if not 0 <= self.aux_coefficient < math.inf:
            raise InvalidValue(f"aux_coefficient={self.aux_coefficient} is out of range. It is 0 or more.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How text becomes activations to train on."""

    context: int | None = None
    """Tokens in a row of the model's input; None: what the model can read, at most 1024, as where it is evaluated."""
    model_batch_size: int | None = None
    """Rows in a forward pass of the model; None: as many as make about 4096 tokens."""
    buffer_bytes: int = 128 * 2**20
    """Memory of the ring in which activations are shuffled."""
    assistant_only: bool = False
    """Of conversations, train only on what the assistant says; the model reads all of them."""
    exclude_special_tokens: bool = True
    """Leave out BOS, EOS and their like: their activations are outliers that a dictionary would spend itself on."""
    exclude_first_position: bool = True
    """Leave out the first token of a row, an attention sink in most models, whatever it is."""
    norm_outlier: float | None = 10.0
    """Leave out tokens of more than so many times the median norm: sinks in the middle of a row; None keeps them."""

    def __post_init__(self) -> None:
        for name in ("context", "model_batch_size", "buffer_bytes"):
            if getattr(self, name) is not None or name == "buffer_bytes":
                check_count(name, getattr(self, name))
        if self.norm_outlier is not None:
            check_positive("norm_outlier", self.norm_outlier)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a dictionary is trained; the defaults are meant to be left alone.

    Raises: InvalidValue, InvalidType: when a field has a value or a type that cannot work.
    Example:
        >>> TrainConfig(architecture="topk", d_sae=4096, k=16, tokens=4_000_000).steps
        3907
    """

    architecture: str = "topk"
    """A name in `ARCHITECTURES`."""
    d_sae: int | None = None
    """Number of features; None: 8 times the width of the activations."""
    k: int = 32
    """Features that fire per token: exactly (topk and its like) or on average, by a controller or a threshold."""
    target_l0: float | None = None
    """The same by its other name, and not only a whole number; None: k."""
    tokens: int = 2_000_000
    """Activations to train on. Data that hold fewer are read again."""
    batch_size: int | None = None
    """Activations in a step; None: such that there are about 4,000 steps, within 512 to 4,096."""
    learning_rate: float | None = None
    """Of Adam, on inputs scaled to norm 1; None: by the number of features and of steps (`rate`)."""
    seed: int = 0
    """Of everything random."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the architecture's own recipe; `hfsae.train.recipes` says which each has."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Adam and its schedule."""
    dead: DeadConfig = field(default_factory=DeadConfig)
    """What is done about features that never fire."""
    data: DataConfig = field(default_factory=DataConfig)
    """How text becomes activations."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            known = did_you_mean(str(self.architecture), ARCHITECTURES)
            raise InvalidValue(f"There is no architecture {self.architecture!r}.{known}")
        for name in ("k", "tokens"):
            check_count(name, getattr(self, name))
        for name in ("d_sae", "batch_size"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("target_l0", "learning_rate"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InvalidType(f"seed={self.seed!r} is no whole number. Give one.")
        if self.d_sae is not None and self.l0 > self.d_sae:
            raise InvalidValue(f"k={self.l0:g} is out of range. There are only d_sae={self.d_sae} features. Lower k.")

    @property
    def l0(self) -> float:
        """Features that fire per token, as asked for by either name."""
        return float(self.k if self.target_l0 is None else self.target_l0)

    @property
    def whole_k(self) -> int:
        """Features that fire per token where it must be a whole number, the same for each token; halves go up."""
        return max(math.floor(self.l0 + 0.5), 1)

    @property
    def batch(self) -> int:
        """Activations in a step."""
        if self.batch_size is not None:
            return self.batch_size
        power = 1 << round(math.log2(max(self.tokens / _BATCHES_WANTED, 1)))
        return min(max(power, _SMALLEST_BATCH), _LARGEST_BATCH)

    @property
    def steps(self) -> int:
        """Steps in the run; the last may be smaller."""
        return math.ceil(self.tokens / self.batch)

    def features(self, d_in: int) -> int:
        """Return the number of features for activations of that width."""
        return self.d_sae if self.d_sae is not None else _DEFAULT_EXPANSION * d_in

    def rate(self, d_in: int) -> float:
        """Return the learning rate, by the rule ``2e-4 / sqrt(d_sae / 2^14)`` and higher in shorter runs.

        Three times the rule in 4,000 steps, by the inverse root of the steps elsewhere, from one to six times.

        Source: the rule is that of Gao et al. 2024 (arXiv:2406.04093), for long runs; the factor was measured on worlds
            of known truth and on a small language model.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        factor = min(max(3 * math.sqrt(_BATCHES_WANTED / self.steps), 1.0), 6.0)
        return factor * 2e-4 / math.sqrt(self.features(d_in) / 2**14)

    def to_dict(self) -> dict[str, Any]:
        """Return its fields as JSON can hold them."""
        values = asdict(self)
        values["recipe"] = dict(self.recipe)
        values["optimizer"]["betas"] = list(self.optimizer.betas)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Build it from its `to_dict`.

        Raises: InvalidValue: for a field that there is not, by name.
        """
        chosen = dict(_known(cls, values))
        if "optimizer" in chosen:
            optimizer = dict(_known(OptimizerConfig, chosen["optimizer"]))
            if "betas" in optimizer:
                optimizer["betas"] = tuple(optimizer["betas"])
            chosen["optimizer"] = OptimizerConfig(**optimizer)
        if "dead" in chosen:
            chosen["dead"] = DeadConfig(**_known(DeadConfig, chosen["dead"]))
        if "data" in chosen:
            chosen["data"] = DataConfig(**_known(DataConfig, chosen["data"]))
        return cls(**chosen)


def check_count(name: str, value: object) -> None:
    """Raise unless the value is a whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidType(f"{name}={value!r} is of type {type(value).__name__}. It must be a whole number.")
    if value < 1:
        raise InvalidValue(f"{name}={value} is out of range. It must be 1 or more.")


def check_positive(name: str, value: object) -> None:
    """Raise unless the value is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidType(f"{name}={value!r} is of type {type(value).__name__}. It must be a number.")
    if not 0 < value < math.inf:
        raise InvalidValue(f"{name}={value!r} is out of range. It must be finite and above 0.")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InvalidValue(f"{name}={value!r} is out of range. It is a share, 0 to 1.")


def _known(config: type, values: Mapping[str, Any]) -> Mapping[str, Any]:
    names = [f.name for f in fields(config)]
    for name in values:
        if name not in names:
            raise InvalidValue(f"{config.__name__} has no field {name!r}.{did_you_mean(str(name), names)}")
    return values
