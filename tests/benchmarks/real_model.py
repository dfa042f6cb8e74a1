"""FVU and dead features of dictionaries of the shipped model, ours untuned and the peers' over learning rates.

Run: ``python tests/benchmarks/real_model.py [tokens]``; with the peers, under an interpreter that has them. All see the
same activations: after the middle layer, d_sae 1,024, L0 16, batch 512. Measured on validation texts.
"""

import sys
import time
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor
from train_step import dictionary_learning_trainer, sae_lens_trainer

from hfsae.data.rows import ModelRows
from hfsae.data.sources import open_source
from hfsae.default import default_texts, load_default
from hfsae.sae.config import SAEConfig
from hfsae.sites import resolve
from hfsae.train import TrainConfig, train

PEERS = {"SAELens": sae_lens_trainer, "dictionary_learning": dictionary_learning_trainer}
LAYER, D_SAE, K, BATCH, RATES = 2, 1024, 16, 512, (3e-4, 1e-3, 3e-3)


def main() -> None:
    """Print one line per trainer and learning rate."""
    tokens = int(float(sys.argv[1])) if len(sys.argv) > 1 else 1_500_000
    torch.set_num_threads(1)
    x, held_out = activations("train", tokens), activations("validation", 100_000)
    for architecture in ("topk", "batchtopk", "refined_topk"):
        config = TrainConfig(architecture=architecture, d_sae=D_SAE, k=K, tokens=tokens, batch_size=BATCH)
        begun = time.thread_time()
        sae = train(activations=x, config=config, progress=False)
        line(f"hfsae {architecture}", lambda part, sae=sae: (sae(part), sae.encode(part)), held_out, begun)
    scale = float(x.square().sum(1).mean()) ** -0.5
    for (name, make), architecture, rate in product(PEERS.items(), ("topk", "batchtopk"), RATES):
        begun = time.thread_time()
        step, codes = make(x.shape[1], D_SAE, K, rate, tokens // BATCH, architecture)
        for part in batches(x * scale):
            step(part)
        line(f"{name} {architecture} {rate:g}", codes, held_out * scale, begun)


def activations(split: str, tokens: int) -> Tensor:
    """Return the shipped model's activations on its texts."""
    model, tokenizer = load_default()
    policy = SAEConfig(architecture="standard", d_in=192, d_sae=1, exclude_first_position=True, norm_outlier=10.0)
    options = {"tokenizer": tokenizer, "batch_size": 16, "context": 128}
    rows = ModelRows(model, [resolve(model, LAYER)], open_source(default_texts(split), 0), policy, options)
    parts, epoch = [], 0
    while sum(map(len, parts)) < tokens:
        for part in rows.chunks(epoch, 0):
            parts.append(part)
            if sum(map(len, parts)) >= tokens:
                break
        epoch += 1
    return torch.cat(parts)[:tokens]


def batches(x: Tensor) -> Iterator[Tensor]:
    """Yield the activations in batches, shuffled."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for chosen in order.split(BATCH):
        yield x[chosen]


@torch.no_grad()
def line(name: str, codes: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, begun: float) -> None:
    """Print the figures of one dictionary, given what maps x to its reconstruction and its codes."""
    spent, error, fired = time.thread_time() - begun, 0.0, torch.zeros(D_SAE)
    for part in x.split(2048):
        x_hat, f = codes(part)
        error += float((part - x_hat).double().square().sum())
        fired += (f != 0).sum(0)
    fvu = error / float((x - x.mean(0)).double().square().sum())
    dead, l0 = float((fired == 0).float().mean()), float(fired.sum()) / len(x)
    print(f"{name:32s} FVU {fvu:.4f}  dead {dead:.4f}  L0 {l0:.1f}  {spent:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
