"""CPU time of encoding, as a multiple of the encoder's product alone (`torch.addmm`); peers too, where they import.

Run: ``python tests/benchmarks/encode.py [d_in d_sae]``. One thread; the best of several runs, in the thread's own CPU
time, since a shared machine's wall clock says little.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hfsae.sae.architectures import ARCHITECTURES
from hfsae.sae.base import SparseCoder
from hfsae.sae.config import SAEConfig

K, L0, TOKENS = 32, 64, (1, 256, 4096)


def main() -> None:
    """Print one line per number of tokens."""
    d_in, d_sae = (int(a) for a in sys.argv[1:3]) if len(sys.argv) > 2 else (768, 16384)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    topk = SparseCoder(SAEConfig(architecture="topk", d_in=d_in, d_sae=d_sae, k=K))
    jumprelu = SparseCoder(SAEConfig(architecture="jumprelu", d_in=d_in, d_sae=d_sae))
    with torch.no_grad():
        topk.W_enc.normal_(std=d_in**-0.5)
        jumprelu.load_state_dict(topk.state_dict() | {"threshold": jumprelu.threshold})
        jumprelu.threshold.fill_(_threshold(topk))
        sequential = [_sequential(name, d_in, d_sae) for name in ("refined_topk", "matching_pursuit")]
        for tokens in TOKENS:
            _print_line(topk, jumprelu, sequential, torch.randn(tokens, d_in))


def _print_line(topk: SparseCoder, jumprelu: SparseCoder, sequential: list[SparseCoder], x: Tensor) -> None:
    runs = {1: 30, 256: 5}.get(len(x), 2)
    weight, bias = topk.W_enc.T, topk.b_enc
    floor = _seconds(lambda: torch.addmm(bias, x, weight), runs)
    routes: dict[str, Callable[[], object]] = {
        "topk encode": lambda: topk.encode_sparse(x),
        "topk forward": lambda: topk(x),
        "jumprelu encode": lambda: jumprelu.encode_sparse(x),
        "jumprelu forward": lambda: jumprelu(x),
        **{f"{sae.config.architecture} encode": lambda sae=sae: sae.encode_sparse(x) for sae in sequential},
    } | {name: lambda call=call: call(x) for name, call in _peers(topk).items()}
    ratios = ", ".join(f"{name} {_seconds(run, runs) / floor:.2f}" for name, run in routes.items())
    print(f"{len(x):5d} tokens: floor {1e3 * floor:.2f} ms; {ratios}", flush=True)


def _sequential(architecture: str, d_in: int, d_sae: int) -> SparseCoder:
    """A dictionary of random unit rows, with the threshold at which K fire on average."""
    spare = ARCHITECTURES[architecture].spare
    sae = SparseCoder(SAEConfig(architecture=architecture, d_in=d_in, d_sae=d_sae, k=K * spare))
    x, low, high = torch.randn(64, d_in), 0.0, 10.0
    for _ in range(12):
        sae.threshold.fill_((low + high) / 2)
        fires_more = sae.encode_sparse(x).l0().float().mean() > K
        low, high = ((low + high) / 2, high) if fires_more else (low, (low + high) / 2)
    return sae


def _peers(ours: SparseCoder) -> dict[str, Callable[[Tensor], object]]:
    """Encoders of other libraries with the same weights, those that import."""
    peers: dict[str, Callable[[Tensor], object]] = {}
    try:
        from dictionary_learning.trainers.top_k import AutoEncoderTopK
    except ImportError:
        pass
    else:
        theirs = AutoEncoderTopK(ours.config.d_in, ours.config.d_sae, K)
        _copy(theirs.encoder, ours)
        peers["dictionary_learning encode"] = theirs.encode
    try:
        from sparsify import SparseCoder as Sparsify
        from sparsify import SparseCoderConfig
    except ImportError:
        pass
    else:
        sparse = Sparsify(ours.config.d_in, SparseCoderConfig(num_latents=ours.config.d_sae, k=K), "cpu")
        _copy(sparse.encoder, ours)
        peers["sparsify encode"] = sparse.encode
    return peers


def _copy(encoder: nn.Module, ours: SparseCoder) -> None:
    encoder.weight.data.copy_(ours.W_enc)  # type: ignore[operator, union-attr]
    encoder.bias.data.copy_(ours.b_enc)  # type: ignore[operator, union-attr]


def _threshold(topk: SparseCoder) -> float:
    z = topk.preactivations(torch.randn(64, topk.config.d_in)).flatten()
    return float(z.kthvalue(int(z.numel() * (1 - L0 / topk.config.d_sae))).values)


def _seconds(run: Callable[[], object], runs: int) -> float:
    run()
    best = float("inf")
    for _ in range(runs):
        start = time.thread_time()
        run()
        best = min(best, time.thread_time() - start)
    return best


if __name__ == "__main__":
    main()
