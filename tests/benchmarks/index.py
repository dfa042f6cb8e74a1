"""What an index costs beside the bare model on the same tokens: ``python tests/benchmarks/index.py [tokens]``.

The shipped model and its dictionary of 2,048 features, on the Python library that it was trained on. CPU time of one
thread, for the first and for the second half of the tokens, so that a cost that grows would show, against the bare
model on the first half; memory at its peak, above what the process holds with model, dictionary and tokens loaded.
"""

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from hfsae.attach import attach
from hfsae.data.tokens import batches
from hfsae.default import default_texts, load_default
from hfsae.features import index_features


def main(tokens: int) -> None:
    """Print both times, and the memory that the index took."""
    torch.set_num_threads(1)
    model, tokenizer = load_default()
    stream = batches(default_texts("train"), tokenizer=tokenizer, batch_size=16, max_tokens=tokens)
    given = [batch.input_ids for batch in stream]
    attachment = attach(model, layer=1)
    held, times, half = resident(), [], len(given) // 2

    def timed() -> Iterator[torch.Tensor]:
        for number, ids in enumerate(given):
            if number in (0, half):
                times.append(time.process_time())
            yield ids

    index = index_features(attachment, timed(), tokenizer=tokenizer, progress=False)
    times.append(time.process_time())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    attachment.detach()
    start = time.process_time()
    with torch.no_grad():
        for ids in given[:half]:
            model(ids, use_cache=False)
    bare = time.process_time() - start
    first, second = times[1] - times[0], times[2] - times[1]
    per_token = 1e6 / sum(ids.numel() for ids in given[:half])
    print(f"index of {index.tokens:,} tokens: {first * per_token:.1f} us per token, then {second * per_token:.1f}")
    print(f"bare forward {bare * per_token:.1f} us per token; the index takes {(first + second) / 2 / bare:.2f} x that")
    print(f"{peak - held:.0f} MiB above the model")


def resident() -> float:
    """Memory of this process now, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
