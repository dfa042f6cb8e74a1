"""How much of known truth the default recipes find: every architecture on every world, nothing tuned.

Run: ``python tests/benchmarks/recovery.py [--worlds uniform zipf] [--architectures topk] [--seeds 0 1 2] [--jobs 2]``.
One line a run, in CPU seconds of one thread; the widths and the batch are those of the figures known of other trainers.
"""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import torch

from hfsae.sae.architectures import ARCHITECTURES
from hfsae.toy.recovery import recovery
from hfsae.toy.worlds import World
from hfsae.train import TrainConfig, train

BATCH = 512
WORLDS = {
    "uniform": {"name": "uniform", "n": 512, "d": 64, "l0": 5.0},
    "zipf": {"name": "zipf", "n": 512, "d": 64, "l0": 5.0},
    "hierarchical": {"name": "hierarchical", "n": 512, "d": 64, "l0": 5.0},
    "tiny": {"name": "uniform", "n": 256, "d": 32, "l0": 2.5},
    "large": {"name": "zipf", "n": 2048, "d": 256, "l0": 10.0},
}


class Samples:
    """A world's activations, the same in each epoch."""

    def __init__(self, world: World, count: int, seed: int) -> None:
        self.world, self.count, self.seed = world, count, seed

    def __iter__(self):
        return self.world.activations(self.count, batch=BATCH, seed=1000 + self.seed)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=WORLDS)
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each in a process of its own")
    chosen = parser.parse_args()
    print(f"{'world':13s}{'architecture':17s}seed  rec90  MMCS     F1     L0    FVU   dead  absorption  CPU s")
    rows = list(product(chosen.worlds, chosen.architectures))
    with ProcessPoolExecutor(chosen.jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = {row: [pool.submit(scores, *row, seed, chosen.steps) for seed in chosen.seeds] for row in rows}
        for row in rows:
            runs = []
            for seed, future in zip(chosen.seeds, waiting[row], strict=True):
                runs.append(future.result())
                line(*row, str(seed), runs[-1])
            if len(runs) > 1:
                line(*row, "mean", {key: sum(run[key] for run in runs) / len(runs) for key in runs[0]})


def scores(name: str, architecture: str, seed: int, steps: int) -> dict[str, float]:
    """Train one dictionary and return its scores."""
    torch.set_num_threads(1)
    world = World(**WORLDS[name], seed=seed)
    tokens = BATCH * steps
    config = TrainConfig(
        architecture=architecture, d_sae=world.n, target_l0=world.l0, tokens=tokens, batch_size=BATCH, seed=seed
    )
    begun = time.thread_time()
    sae = train(activations=Samples(world, tokens + 2**17, seed), config=config, progress=False)
    spent = time.thread_time() - begun
    x, codes = world.sample(16_384, torch.Generator().manual_seed(99))
    found = recovery(sae, world, x, codes).to_dict()
    return {**{key: score for key, score in found.items() if score is not None}, "spent": spent}


def line(name: str, architecture: str, seed: str, s: dict[str, float]) -> None:
    """Print the scores of a run, or their means."""
    absorbed = f"{s['absorption']:.3f}" if "absorption" in s else ""
    print(
        f"{name:13s}{architecture:17s}{seed:>4s}{s['rec90']:7.3f}{s['mmcs_forward']:7.3f}{s['f1']:7.3f}{s['l0']:7.2f}"
        f"{s['fvu']:7.3f}{s['dead']:7.3f}{absorbed:>12s}{s['spent']:7.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
