"""Runs of one model over one batch: clean, and with the activation at a site replaced, no layer more often than needed.

1. The clean run keeps what the last block below the site returned, and what the body of the model returned to its head.
2. A run with a replacement starts there: the blocks below give back what was kept. This is proved on the first run,
   by one without a replacement that must give the clean result bit for bit; else everything runs every time.
3. Logits come from the model's own head on the kept result of its body, for some positions at a time, so that the
   ``[batch, seq, vocab]`` of a run never exists.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfsae.errors import SiteNotFound
from hfsae.hooks import activation_of_output, input_key
from hfsae.measuring.replay import Call, recorded, replayed
from hfsae.sites import Point, blocks, unwrap

Edit = AbstractContextManager[object]


@dataclass(frozen=True, eq=False)
class Run:
    """One forward of the model, as far as it is needed again."""

    inputs: Mapping[str, Any]
    """What the model was called with."""
    kept: Mapping[nn.Module, Any]
    """What modules returned, to go on from."""
    outputs: Any = None
    """What the model returned; its logits are there only where they cannot be made later."""
    seen: tuple[Tensor, ...] = ()
    """The activation at each point that was watched."""

    def rows(self, rows: Tensor) -> "Run":
        """Return some rows of this run, to go on from those alone."""
        inputs = {name: _rows_of(value, rows) for name, value in self.inputs.items()}
        return Run(inputs, {module: _rows_of(output, rows) for module, output in self.kept.items()})


class Passes:
    """Runs of a model, sharing what they have in common.

    Args:
        model: A model, wrapped or not.
        point: Where the activation is replaced.
        whole_outputs: Keep the model's outputs as they are, for a loss of the caller's.
    """

    def __init__(self, model: object, point: Point, *, whole_outputs: bool = False) -> None:
        self.model = unwrap(model)
        self._parameters = inspect.signature(_transformer(self.model).forward).parameters
        stack = _stack(self.model, point)
        self._below = _modules_below(stack, point)
        self._body = None if whole_outputs or "logits_to_keep" not in self._parameters else _body(self.model, point)
        self._proved = False
        self.is_residual = any(point.module is block for _, block in stack)
        """All that the blocks above read passes the site."""

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        embeddings = getattr(self.model, "get_input_embeddings", lambda: None)()
        weight = getattr(embeddings, "weight", None)
        first = weight if isinstance(weight, Tensor) else next(self.model.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def clean(self, inputs: Mapping[str, Any], watch: Sequence[Point] = ()) -> Run:
        """Run the model as it is, and see the activations at the watched points."""
        run = self._run(inputs, {}, nullcontext(), keep=(*self._below[-1:], self._body), watch=watch)
        if not self._proved:
            self._proved = True
            if not self.same(self.replaced(run, nullcontext()), run):
                self._below = ()
        return run

    def replaced(self, run: Run, edit: Edit) -> Run:
        """Run again from below the site, with an edit there."""
        below = run.kept[self._below[-1]] if self._below else None
        return self._run(run.inputs, dict.fromkeys(self._below, below), edit, keep=(self._body,))

    def restarted(self, inputs: Mapping[str, Any], edit: Edit) -> Run:
        """Run from the start, with an edit."""
        return self._run(inputs, {}, edit, keep=(self._body,))

    def logits(self, run: Run, positions: Tensor) -> Tensor:
        """Return the logits of a run at some positions, ``[batch, positions, vocab]``."""
        if self._body is None:
            logits: Tensor = run.outputs.logits[:, positions]
            return logits
        with replayed({self._body: run.kept[self._body]}):
            made: Tensor = self._call(run.inputs, logits_to_keep=positions).logits
            return made

    def same(self, run: Run, other: Run, tolerance: float = 0.0) -> bool:
        """Say whether two runs came to the same last hidden state (or first output), bit for bit or nearly so."""
        one, two = (activation_of_output(self._end(each), self.model).float() for each in (run, other))
        return torch.equal(one, two) if not tolerance else float((one - two).norm()) <= tolerance * float(two.norm())

    def _end(self, run: Run) -> Any:
        return run.outputs if self._body is None else run.kept[self._body]

    def _run(
        self,
        inputs: Mapping[str, Any],
        below: Mapping[nn.Module, Any],
        edit: Edit,
        keep: tuple[nn.Module | None, ...],
        watch: Sequence[Point] = (),
    ) -> Run:
        modules = {module for module in (*keep, *(point.module for point in watch)) if module is not None}
        extra: dict[str, Any] = {}
        if self._body is not None:  # one position is the least that a head can be asked for
            extra["logits_to_keep"] = torch.zeros(1, dtype=torch.long, device=self.device)
        with replayed(below), recorded(modules) as calls, edit:
            outputs = self._call(inputs, **extra)
        seen = tuple(_activation(point, calls) for point in watch)
        return Run(inputs, {module: calls[module].output for module in keep if module is not None}, outputs, seen)

    def _call(self, inputs: Mapping[str, Any], **extra: Any) -> Any:
        if "use_cache" in self._parameters:
            extra["use_cache"] = False
        return self.model(**inputs, **extra)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """While open, the model is in eval mode, without gradients or autocast; afterwards every module is as it was."""
    before = {module: module.training for module in model.modules()}
    device = next((p.device.type for p in model.parameters()), "cpu")
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        for module, training in before.items():
            module.training = training


def predicts_next_token(passes: Passes, input_ids: Tensor) -> bool:
    """Say whether the model is a language model: it has logits, and none depends on a later token.

    Shape: input_ids: ``[1, seq]``, at least two tokens.
    """
    if getattr(getattr(passes.model, "config", None), "is_encoder_decoder", False):
        return False
    other = input_ids.clone()
    other[:, -1] = other[:, 0] if bool(other[0, -1] != other[0, 0]) else (other[:, 0] + 1) % 2
    runs = [passes.clean({"input_ids": ids, "attention_mask": torch.ones_like(ids)}) for ids in (input_ids, other)]
    if getattr(runs[0].outputs, "logits", input_ids).dim() != 3:
        return False
    before = torch.arange(input_ids.shape[1] - 1, device=input_ids.device)
    one, two = (passes.logits(run, before).float() for run in runs)
    if not bool(torch.isfinite(one).all()):
        return True  # the first batch says what is not finite, and where
    # A kernel may round differently from run to run; another token in a row changes the numbers by their own size.
    return one.shape[1] == len(before) and torch.allclose(one, two, rtol=1e-3, atol=1e-3 * float(one.std()))


def _transformer(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def _body(model: nn.Module, point: Point) -> nn.Module | None:
    """The part of a language model that its head comes after, if the site is in there."""
    transformer = _transformer(model)
    body = getattr(transformer, "base_model", None)
    if not isinstance(body, nn.Module) or body is transformer:
        return None
    return body if any(module is point.module for module in body.modules()) else None


def _stack(model: nn.Module, point: Point) -> list[tuple[str, nn.Module]]:
    try:
        return blocks(model, point.site.stack)
    except SiteNotFound:  # a model without blocks runs whole every time
        return []


def _modules_below(stack: list[tuple[str, nn.Module]], point: Point) -> tuple[nn.Module, ...]:
    """The blocks whose results an edit at the point cannot change; with them its own block, where it is its output."""
    for index, (path, block) in enumerate(stack):
        if point.module is block:
            return tuple(module for _, module in stack[: index + (point.io == "output")])
        if point.path.startswith(path + "."):
            return tuple(module for _, module in stack[:index])
    return ()


def _activation(point: Point, calls: Mapping[nn.Module, Call]) -> Tensor:
    if point.module not in calls:
        raise SiteNotFound(f"{point.path} did not run in this forward. Its activation was expected. Check the site.")
    call = calls[point.module]
    if point.io == "output":
        return activation_of_output(call.output, point.module)
    key = input_key(call.args, call.kwargs, point.module)
    x: Tensor = call.args[key] if isinstance(key, int) else call.kwargs[key]
    return x


def _rows_of(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor) and value.ndim:
        return value[rows.to(value.device)]
    return tuple(_rows_of(item, rows) for item in value) if isinstance(value, tuple) else value
