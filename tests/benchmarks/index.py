"""What an index costs beside the bare model on the same tokens: ``python tests/benchmarks/index.py [tokens]``.

The shipped model and dictionary, validation texts again and again until there are enough tokens. CPU time of one
thread, for half of the tokens and for all, so that a cost that grows would show; peak memory of the process.
"""

import resource
import sys
import time
from itertools import chain, repeat

import torch

from hfsae.attach import attach
from hfsae.data.tokens import batches
from hfsae.default import default_texts, load_default
from hfsae.features import index_features


def main(tokens: int) -> None:
    """Print both times, and the memory that the index took."""
    torch.set_num_threads(1)
    model, tokenizer = load_default()
    texts = default_texts("validation")
    endless = chain.from_iterable(repeat(texts))
    given = [batch.input_ids for batch in batches(endless, tokenizer=tokenizer, batch_size=16, max_tokens=tokens)]
    start = time.process_time()
    with torch.no_grad():
        for ids in given:
            model(ids, use_cache=False)
    bare = time.process_time() - start
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attachment = attach(model, layer=1)
    for part, label in ((given[: len(given) // 2], "half"), (given, "all")):
        start = time.process_time()
        index = index_features(attachment, part, tokenizer=tokenizer, progress=False)
        spent = time.process_time() - start
        print(f"{label}: {index.tokens:,} tokens, {1e6 * spent / index.tokens:.1f} us per token")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"bare forward {1e6 * bare / tokens:.1f} us per token; the index takes {spent / bare:.2f} x that")
    print(f"{(peak - before) / 1e3:.0f} MB above the model")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
