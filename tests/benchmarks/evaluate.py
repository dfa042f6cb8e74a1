"""What an evaluation costs, in bare forwards with their loss: ``python tests/benchmarks/evaluate.py``.

A random model of GPT-2 small's shape, a TopK dictionary of 24,576 features at the end of block 8 of 12. Four losses
come out (clean, spliced, zero- and mean-ablated), which naively take four forwards. CPU time of one thread.
"""

import time
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hfsae.attach import attach
from hfsae.dictionary import SAE
from hfsae.evaluate import evaluate
from hfsae.sae.config import SAEConfig

ROWS, CONTEXT, BATCH = 16, 128, 8


def seconds(run: Callable[[], object], repeats: int = 2) -> float:
    """Least CPU time of some runs; other work on the machine only ever adds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Print the ratio."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    dictionary = SAE(SAEConfig(architecture="topk", d_in=768, d_sae=24_576, k=32)).requires_grad_(False)
    attachment = attach(model, 7, sae=dictionary)
    ids = torch.randint(50_000, (ROWS, CONTEXT))

    @torch.no_grad()
    def bare() -> None:
        for batch in ids.split(BATCH):
            model(batch, labels=batch, use_cache=False)

    forward = seconds(bare)
    whole = seconds(lambda: evaluate(attachment, ids, batch_size=BATCH, progress=False))
    print(f"{ids.numel()} tokens: bare forward {forward:.2f} s, evaluate {whole:.2f} s, ratio {whole / forward:.2f}")


if __name__ == "__main__":
    main()
