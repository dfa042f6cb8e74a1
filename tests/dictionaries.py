"""Random dictionaries of every kind, and a slow float64 computation of what they do, written from the formulas."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
import torch
from torch import Tensor

from hfsae.dictionary import SAE
from hfsae.sae.architectures import ARCHITECTURES
from hfsae.sae.config import SAEConfig
from hfsae.sae.statistics import FeatureStatistics

D_IN, D_SAE, D_OUT, K = 12, 57, 20, 5  # no two alike, and none a multiple of a tile or a group


@contextmanager
def as_in_production() -> Iterator[None]:
    """Without the checks of annotations, which in tests would speak before our own messages do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def config_of(architecture: str, **fields: Any) -> SAEConfig:
    """A small config; widths and k can be given."""
    k = K if ARCHITECTURES[architecture].needs_k else None
    return SAEConfig(**({"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "k": k} | fields))


def random_sae(architecture: str = "topk", *, seed: int = 0, **fields: Any) -> SAE:
    """A dictionary in which every parameter is random, no bias zero and the encoder not the decoder."""
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(config_of(architecture, **fields))
    for name, parameter in sae.named_parameters():
        spread = 0.4 if parameter.ndim == 1 else 0.7
        if name == "threshold":
            drawn = 2.5 * torch.rand(parameter.shape, generator=generator) - 0.5
        else:
            drawn = spread * torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(drawn)
    return sae.eval()


def activations(*shape: int, seed: int = 1) -> Tensor:
    """Random activations, not centred, of uneven scale."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * torch.linspace(0.5, 2, shape[-1])
    return x + 0.3


def reference(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (f, x_hat) in float64, by the definition."""
    c = sae.config
    p = {name: value.detach().double() for name, value in sae.named_parameters()}
    x = x.double()
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    read = {"none": x, "scale": x * (c.scale or 1), "layer_norm": (x - mean) / (std + 1e-5)}[c.normalize]
    read = read - {"tied": p["b_dec"], "own": p.get("b_pre"), "none": 0}[c.b_pre]
    f = _features(sae, read, p)
    x_hat = f @ p["W_dec"] + p["b_dec"]
    if not c.is_transcoder:
        x_hat = {"none": x_hat, "scale": x_hat / (c.scale or 1), "layer_norm": x_hat * std + mean}[c.normalize]
    if c.skip:
        x_hat = x_hat + x @ p["W_skip"].T
    return f, x_hat


def statistics_of(sae: SAE, seed: int = 2) -> FeatureStatistics:
    """Made-up statistics of the right shapes."""
    generator = torch.Generator().manual_seed(seed)
    density, most, mean = torch.rand(3, sae.config.d_sae, generator=generator)
    return FeatureStatistics(
        density=density, max=most, mean=mean, mean_norm=7.5, tokens=1000, mean_activation=torch.ones(sae.config.d_in)
    )


def _features(sae: SAE, read: Tensor, p: dict[str, Tensor]) -> Tensor:
    z = read @ p["W_enc"].T + p["b_enc"]
    kind, k = ARCHITECTURES[sae.config.architecture].kind, sae.config.k or 1
    if kind == "thresholded":
        return z.relu() * (z > p.get("threshold", torch.zeros(1)))
    if kind == "topk":
        return _largest(z, k)
    floor = p["threshold"].clamp(min=0)
    if sae.config.architecture == "refined_topk":
        candidates, f = z >= z.topk(k, dim=-1).values[..., -1:], z.relu()
        for _ in range(2):
            code = _largest(f * candidates, k // 4)
            f = code + (read - code @ p["W_dec"]) @ p["W_dec"].T / p["W_dec"].square().sum(1)
        return f * candidates * (f > floor)
    f, residual, goes_on = torch.zeros_like(z), read, torch.ones_like(z[..., :1])
    for _ in range(k):
        value, index = (residual @ p["W_enc"].T + p["b_enc"]).max(dim=-1, keepdim=True)
        goes_on = goes_on * (value > floor[index])
        f = f.scatter_add(-1, index, value * goes_on)
        residual = residual - value * goes_on * p["W_dec"][index.squeeze(-1)]
    return f


def _largest(z: Tensor, k: int) -> Tensor:
    values, indices = z.topk(min(k, z.shape[-1]), dim=-1)
    return torch.zeros_like(z).scatter(-1, indices, values.relu())
