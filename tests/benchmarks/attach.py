"""CPU time that attaching, steering and ablating add to a forward, and what a sweep in one batch saves.

``python tests/benchmarks/attach.py [rounds]``: a random model of the size of GPT-2 small, 128 tokens, d_sae 24,576.
Times are CPU times of this thread, medians over rounds: other work on the machine does not count.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import hfsae
from hfsae.hooks import find_dispatcher

torch.set_num_threads(1)
TOKENS, LAYERS = 128, 12


def cpu_seconds(run: Callable[[], object], times: int = 1) -> float:
    """Return the CPU time of one call, averaged over some."""
    start = time.thread_time()
    for _ in range(times):
        run()
    return (time.thread_time() - start) / times


def hook_seconds(att: hfsae.Attachment, x: torch.Tensor, rounds: int) -> float:
    """Return the median CPU time of the hook at one site."""
    dispatcher = find_dispatcher(att.point.module, "output")
    assert dispatcher is not None
    runs = [cpu_seconds(lambda: dispatcher.on_output(att.point.module, (), x), 20) for _ in range(rounds)]
    return statistics.median(runs)


@torch.no_grad()
def main(rounds: int) -> None:
    """Print each figure beside its bar."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=LAYERS)).eval()
    sae = hfsae.SAE(hfsae.SAEConfig(architecture="jumprelu", d_in=768, d_sae=24_576))
    ids, x = torch.randint(5, 50_000, (1, TOKENS)), torch.randn(1, TOKENS, 768)
    forward = statistics.median(cpu_seconds(lambda: model(ids)) for _ in range(max(3, rounds // 4)))
    print(f"forward of {TOKENS} tokens: {forward * 1e3:.1f} ms")
    att = hfsae.attach(model, 8, sae=sae)
    print(f"idle: {hook_seconds(att, x, rounds) * 1e6:.2f} us per site (bar 5)")
    for name, edit, bar in (("steer one", att.steer(7, 3.0), 0.5), ("ablate one", att.ablate(7), 1.0)):
        with edit:
            model(ids)
            added = hook_seconds(att, x, rounds)
        print(f"{name}: {added * 1e6:.0f} us, {100 * added / forward:.3f} % of the forward (bar {bar} %)")
    sweep(model, att)


def sweep(model: torch.nn.Module, att: hfsae.Attachment) -> None:
    """Print the CPU time of 8 strengths in one batch against 8 runs, generating 24 tokens."""
    ids = torch.randint(5, 50_000, (1, 16))
    strengths = torch.arange(8.0)
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}

    def generate(rows: int) -> object:
        repeated = ids.repeat(rows, 1)
        return model.generate(repeated, attention_mask=torch.ones_like(repeated), **options)  # type: ignore[operator]

    def one_by_one() -> None:
        for strength in strengths.tolist():
            with att.steer(7, strength):
                generate(1)

    def together() -> None:
        with att.steer(7, strengths):
            generate(8)

    apart, batched = cpu_seconds(one_by_one), cpu_seconds(together)
    print(f"sweep of 8: {batched:.2f} s in one batch, {apart:.2f} s apart, ratio {batched / apart:.2f} (bar 0.6)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
