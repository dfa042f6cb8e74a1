"""CPU time and memory of one full topk training step, ours and the peers' that import, on the same batch.

Run: ``python tests/benchmarks/train_step.py [d_in d_sae batch]``; with the peers, under an interpreter that has them.
One thread. Time: all in one process, the best of several steps in the thread's own CPU time. Memory: each trainer in a
process of its own, what a step needs at its peak beyond weights and optimizer (Linux only). A step is forward,
backward, clipping, optimizer, and whatever each trainer does besides.
"""

import ctypes
import gc
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hfsae.train import TrainConfig
from hfsae.train.recipe import Shape
from hfsae.train.stepping import Stepper

K, STEPS = 32, 4
Step = Callable[[torch.Tensor], object]
Codes = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def main() -> None:
    """Print one line per trainer."""
    d_in, d_sae, batch = (int(a) for a in sys.argv[1:4]) if len(sys.argv) > 3 else (256, 4096, 4096)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(batch, d_in) / d_in**0.5
    if len(sys.argv) > 4:
        print(peak(TRAINERS[sys.argv[4]](x, d_sae)))
        return
    W, b, out = torch.randn(d_sae, d_in), torch.zeros(d_sae), torch.empty(batch, d_sae)
    floor = best(lambda: torch.addmm(b, x, W.T, out=out))
    print(f"d_in {d_in}, d_sae {d_sae}, batch {batch}: encoder product {1e3 * floor:.0f} ms")
    ours = None
    for name, make in TRAINERS.items():
        try:
            step = make(x, d_sae)
        except ImportError as error:
            print(f"{name:20s} not installed ({error.name})")
            continue
        spent = best(step)
        ours = ours or spent
        ratios = f"{spent / floor:6.2f} products  {spent / ours:5.1f} x hfsae"
        print(f"{name:20s} {1e3 * spent:8.0f} ms  {ratios}  peak {peak_of(name, d_in, d_sae, batch)} MB", flush=True)


def peak_of(name: str, d_in: int, d_sae: int, batch: int) -> str:
    """Return what a trainer's step needs, measured in a process of its own, whose freed memory goes back at once."""
    arguments = [sys.executable, __file__, str(d_in), str(d_sae), str(batch), name]
    thrifty = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return subprocess.run(arguments, capture_output=True, text=True, env=thrifty, check=True).stdout.split()[-1]


def peak(step: Callable[[], object]) -> int:
    """Return by how many MB a step's peak lies above what stays between steps, gradients not counted as staying."""
    for _ in range(2):
        step()
    for thing in gc.get_objects():
        if isinstance(thing, torch.nn.Parameter):
            thing.grad = None
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    step()
    return (resident("VmHWM") - before) // 1024


def resident(name: str) -> int:
    """Return one of the process's own figures of memory, in kB."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found.group(1)) if found else 0


def best(step: Callable[[], object]) -> float:
    """Return the least CPU seconds of several steps."""
    step()
    times = []
    for _ in range(STEPS):
        begun = time.thread_time()
        step()
        times.append(time.thread_time() - begun)
    return min(times)


def hfsae_step(x: torch.Tensor, d_sae: int, progress: float = 0.7) -> Callable[[], object]:
    """Our trainer's step, without its data, at that share of a run: with codes of its own."""
    d_in = x.shape[1]
    config = TrainConfig(d_sae=d_sae, k=K, tokens=10**9, batch_size=len(x))
    stepper = Stepper(Shape(d_in, d_sae, d_in), config)
    stepper.step = round(progress * config.steps)
    return lambda: stepper.update(x, x)


def hfsae_competing_step(x: torch.Tensor, d_sae: int) -> Callable[[], object]:
    """Our trainer's step in the 30 % of a run in which tokens compete."""
    return hfsae_step(x, d_sae, progress=0.5)


def sae_lens_trainer(
    d_in: int, d_sae: int, k: int, rate: float, steps: int, architecture: str = "topk"
) -> tuple[Step, Codes]:
    """SAELens' forward and backward, its clipping at 1, its Adam, and its default of dead after 1,000 steps.

    Batchtopk codes are those of the batch, as in training: its threshold trails behind in short runs.
    """
    from sae_lens.saes import batchtopk_sae, topk_sae
    from sae_lens.saes.sae import TrainStepInput

    kinds = {
        "topk": (topk_sae.TopKTrainingSAE, topk_sae.TopKTrainingSAEConfig),
        "batchtopk": (batchtopk_sae.BatchTopKTrainingSAE, batchtopk_sae.BatchTopKTrainingSAEConfig),
    }
    kind, config = kinds[architecture]
    sae = kind(config(d_in=d_in, d_sae=d_sae, k=k, device="cpu"))
    optimizer = torch.optim.Adam(sae.parameters(), lr=rate)
    idle = torch.zeros(d_sae)

    def step(x: torch.Tensor) -> None:
        given = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=idle > 1000, n_training_steps=1, is_logging_step=False
        )
        out = sae.training_forward_pass(given)
        idle.add_(1).mul_((out.feature_acts == 0).all(0))
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    def codes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        f = sae.encode(x)
        return sae.decode(f), f

    return step, codes


def dictionary_learning_trainer(
    d_in: int, d_sae: int, k: int, rate: float | None, steps: int, architecture: str = "topk"
) -> tuple[Step, Codes]:
    """dictionary_learning's own trainer; its batchtopk codes, too, are those of the batch."""
    from dictionary_learning.trainers import batch_top_k, top_k

    kind = {"topk": top_k.TopKTrainer, "batchtopk": batch_top_k.BatchTopKTrainer}[architecture]
    options = {"layer": 0, "lm_name": "", "device": "cpu", "lr": rate, "warmup_steps": min(1000, steps // 2)}
    trainer = kind(steps=steps, activation_dim=d_in, dict_size=d_sae, k=k, **options)
    count = iter(range(1, 10**9))
    of_batch = {"use_threshold": False}

    def codes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        f = trainer.ae.encode(x, **of_batch)
        return trainer.ae.decode(f), f

    return lambda x: trainer.update(next(count), x), codes


def sae_lens_step(x: torch.Tensor, d_sae: int) -> Callable[[], object]:
    """One step of SAELens' on a batch."""
    step, _ = sae_lens_trainer(x.shape[1], d_sae, K, 3e-4, 1)
    return lambda: step(x)


def dictionary_learning_step(x: torch.Tensor, d_sae: int) -> Callable[[], object]:
    """One step of dictionary_learning's on a batch."""
    step, _ = dictionary_learning_trainer(x.shape[1], d_sae, K, None, 10_000)
    return lambda: step(x)


def sparsify_step(x: torch.Tensor, d_sae: int) -> Callable[[], object]:
    """sparsify's forward and backward, unit decoder with projection, and Adam."""
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=d_sae, k=K))
    optimizer = torch.optim.Adam(sae.parameters(), lr=2e-4)

    def step() -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x)
        optimizer.zero_grad()
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()

    return step


TRAINERS = {
    "hfsae": hfsae_step,
    "hfsae, competing": hfsae_competing_step,
    "SAELens": sae_lens_step,
    "dictionary_learning": dictionary_learning_step,
    "sparsify": sparsify_step,
}

if __name__ == "__main__":
    main()
