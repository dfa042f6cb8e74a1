"""CPU time and memory of loading 131,072 x 2,048 in bf16 (1 GiB): 16 rows, and the whole beside safetensors' own load.

Run: ``python tests/benchmarks/load.py [folder]``; the folder keeps the file for the next run. safetensors maps the file
and reads nothing until it is used, so its load is timed in three ways: mapped alone, with one pass over the numbers (a
sum; verifying the fingerprint is such a pass), and copied into memory.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from hfsae.dictionary import SAE
from hfsae.sae.config import SAEConfig

D_IN, D_SAE = 2048, 131_072


def main() -> None:
    """Print each load's CPU time (best of three) and what it added to the peak of memory."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "/tmp/hfsae_benchmark_load")
    if not folder.exists():
        config = SAEConfig(
            architecture="jumprelu", d_in=D_IN, d_sae=D_SAE, dtype="bfloat16", site="resid_post", layer=1
        )
        SAE(config).save_pretrained(folder)
    weights = folder / "resid_post.layer_1" / "sae.safetensors"
    rows = torch.arange(16) * 8191
    _report("16 rows", lambda: SAE.from_pretrained(folder, features=rows))
    _report("safetensors, mapped", lambda: load_file(weights))
    _report("safetensors, mapped and summed", lambda: [t.sum() for t in load_file(weights).values()])
    _report("whole", lambda: SAE.from_pretrained(folder))
    _report("safetensors, copied", lambda: [t.clone() for t in load_file(weights).values()])


def _report(name: str, load: Callable[[], object]) -> None:
    peak, best = _peak(), float("inf")
    for _ in range(3):
        start = time.process_time()
        load()
        best = min(best, time.process_time() - start)
    print(f"{name:32s} {1e3 * best:8.1f} ms   {_peak() - peak:8.1f} MiB more", flush=True)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
