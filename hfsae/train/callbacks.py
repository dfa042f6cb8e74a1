"""What is told about a run while it goes on: a progress bar, or any object with these methods."""

import time
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from hfsae.errors import InvalidValue, MissingPackage, did_you_mean
from hfsae.train.config import TrainConfig


@dataclass(frozen=True)
class Figures:
    """What a run had reached at a step."""

    step: int
    """Steps done."""
    tokens: int
    """Activations trained on."""
    losses: dict[str, float]
    """Weighted losses by name; "fvu" is the reconstruction's."""
    l0: float
    """Features that fired per token."""
    dead: float
    """Share of features whose clock ran out."""
    learning_rate: float
    """Of this step."""
    extra: dict[str, float] = field(default_factory=dict)
    """Further figures: of the recipe, of an evaluation."""

    def flat(self) -> dict[str, float]:
        """Return all figures in one dictionary, as loggers want them."""
        own = {"l0": self.l0, "dead": self.dead, "learning_rate": self.learning_rate, "tokens": float(self.tokens)}
        return {**self.losses, **own, **self.extra}


@runtime_checkable
class Callback(Protocol):
    """What a run calls; a class of yours need not inherit from this."""

    def on_start(self, config: TrainConfig, tokens_done: int) -> None:
        """Be told that a run begins, or goes on after so many tokens."""

    def on_figures(self, figures: Figures) -> None:
        """Be told of figures, about a hundred times a run."""

    def on_end(self) -> None:
        """Be told that the run ended, well or not."""


class ProgressBar:
    """A bar with tokens a second, the losses, L0 and dead features; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_start(self, config: TrainConfig, tokens_done: int) -> None:
        """Show the bar."""
        from tqdm.auto import tqdm

        # disable=None: tqdm's word for "unless stderr is no terminal".
        self._bar = tqdm(
            total=config.tokens, initial=tokens_done, unit="tok", unit_scale=True, desc="train", disable=None
        )

    def on_figures(self, figures: Figures) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        shown = {**figures.losses, "l0": figures.l0, "dead": figures.dead, **figures.extra}
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)
        self._bar.update(figures.tokens - self._bar.n)

    def on_end(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class History:
    """Keeps the figures, for a picture of the run and for its record."""

    def __init__(self) -> None:
        self.figures: list[Figures] = []
        self._started = time.perf_counter()

    def on_start(self, config: TrainConfig, tokens_done: int) -> None:
        """Note the time."""
        self._started = time.perf_counter()

    def on_figures(self, figures: Figures) -> None:
        """Keep them."""
        self.figures.append(figures)

    def on_end(self) -> None:
        """Nothing to do."""


class LogTo:
    """Sends the figures to trackio, wandb or tensorboard, where that is installed.

    Args:
        tool: One of the three.
        options: Arguments of its ``init`` (project, name, ...), or of tensorboard's ``SummaryWriter`` (log_dir, ...).
    Raises:
        InvalidValue: for another tool.
        MissingPackage: when it is not installed.
    """

    def __init__(self, tool: str, **options: Any) -> None:
        if tool not in _PACKAGES:
            raise InvalidValue(f"There is no logging to {tool!r}.{did_you_mean(tool, _PACKAGES)}")
        try:
            self._package: Any = import_module(_PACKAGES[tool])
        except ImportError as error:
            raise MissingPackage(
                f"Logging to {tool} needs the package {tool}. It is not installed. Run: pip install {tool}"
            ) from error
        self._tool, self._options = tool, options
        self._writer: Any = None

    def on_start(self, config: TrainConfig, tokens_done: int) -> None:
        """Open a run there."""
        if self._tool == "tensorboard":
            self._writer = self._package.SummaryWriter(**self._options)
        else:
            self._package.init(**{"config": config.to_dict(), "project": "hfsae", **self._options})

    def on_figures(self, figures: Figures) -> None:
        """Send the figures."""
        if self._tool == "tensorboard":
            for name, value in figures.flat().items():
                self._writer.add_scalar(name, value, figures.step)
        else:
            self._package.log(figures.flat(), step=figures.step)

    def on_end(self) -> None:
        """Close the run."""
        if self._tool == "tensorboard":
            self._writer.close()
        else:
            self._package.finish()


_PACKAGES = {"trackio": "trackio", "wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}
