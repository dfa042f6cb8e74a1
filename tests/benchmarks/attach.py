"""CPU time that attaching, steering and ablating add to a forward, and what a sweep in one batch saves.

``python tests/benchmarks/attach.py [rounds]``: a random model of the size of GPT-2 small, 128 tokens, d_sae 24,576.
What is added is timed on a model of that depth whose blocks do nothing, so that microseconds show: forwards with and
without attachments alternate, each pair gives one difference, the median is printed. It holds all there is: the hooks
of the sites, that of the module around them, and torch's own for calling any. Times are CPU times of this thread:
other work on the machine does not count.
"""

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import hfsae

torch.set_num_threads(1)
TOKENS, LAYERS, CALLS = 128, 12, 20


class Hollow(nn.Module):
    """A model that is called as others are, and whose blocks pass on what they get."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(LAYERS))

    def forward(self, x: Tensor, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def cpu_seconds(run: Callable[[], object], times: int = 1) -> float:
    """Return the CPU time of one call, averaged over some."""
    start = time.thread_time()
    for _ in range(times):
        run()
    return (time.thread_time() - start) / times


def added_seconds(sites: int, edit: Callable[[hfsae.Attachment], hfsae.Edit] | None, rounds: int) -> float:
    """Return the median CPU time that so many attachments add to a forward, idle or each under an edit."""
    bare, attached = Hollow().eval(), Hollow().eval()
    sae = hfsae.SAE(hfsae.SAEConfig(architecture="jumprelu", d_in=768, d_sae=24_576))
    ids = torch.randint(5, 50_000, (1, TOKENS))
    x, positions = torch.randn(1, TOKENS, 768), torch.arange(TOKENS)[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}
    with ExitStack() as stack:
        for layer in range(sites):
            att = stack.enter_context(hfsae.attach(attached, module=f"blocks.{layer}", sae=sae))
            if edit is not None:
                stack.enter_context(edit(att))
        attached(x, **given)
        differences = [
            cpu_seconds(lambda: attached(x, **given), CALLS) - cpu_seconds(lambda: bare(x, **given), CALLS)
            for _ in range(rounds)
        ]
    return statistics.median(differences)


@torch.no_grad()
def main(rounds: int) -> None:
    """Print each figure beside its bar."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=LAYERS)).eval()
    ids = torch.randint(5, 50_000, (1, TOKENS))
    forward = statistics.median(cpu_seconds(lambda: model(ids)) for _ in range(max(3, rounds // 4)))
    print(f"forward of {TOKENS} tokens: {forward * 1e3:.1f} ms")
    for sites in (1, LAYERS):
        idle = added_seconds(sites, None, rounds) / sites
        print(f"idle, {sites} attached: {idle * 1e6:.2f} us per site (bar 5)")
    for name, edit, bar in (("steer", lambda a: a.steer(7, 3.0), 0.5), ("ablate", lambda a: a.ablate(7), 1.0)):
        added = added_seconds(1, edit, rounds)
        print(f"{name} one: {added * 1e6:.0f} us, {100 * added / forward:.3f} % of the forward (bar {bar} %)")
    sweep(model)


def sweep(model: GPT2LMHeadModel) -> None:
    """Print the CPU time of 8 strengths in one batch against 8 runs, generating 24 tokens."""
    ids = torch.randint(5, 50_000, (1, 16))
    strengths = torch.arange(8.0)
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    sae = hfsae.SAE(hfsae.SAEConfig(architecture="jumprelu", d_in=768, d_sae=24_576))
    att = hfsae.attach(model, 8, sae=sae)

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
