"""Training losses: pure functions of tensors that return scalars.

All are scale-free: reconstruction is a fraction of the variance of the data, sparsity a count of features (or their
sum, on inputs scaled to norm 1), so that one learning rate and one coefficient serve every layer and every model.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx


def reconstruction(
    x_hat: Float[Tensor, "batch d"], x: Float[Tensor, "batch d"], variance: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Return the mean squared error as a fraction of the variance: the FVU of the batch.

    Args:
        variance: Mean of ``|x - mean x|^2`` over the data; a constant of the run, so that no batch weighs more.
    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> reconstruction(torch.zeros_like(x), x, torch.tensor(1.0))
        tensor(1.)
    """
    return compared(x_hat, x, variance)[0]


def compared(
    x_hat: Float[Tensor, "batch d"], x: Float[Tensor, "batch d"], variance: Float[Tensor, ""]
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch d"]]:
    """Return the FVU of the batch, and what is left over, without a gradient: the one thing kept for going back."""
    return _Compared.apply(x_hat, x, variance)  # type: ignore[no-untyped-call,no-any-return]


def dead_reconstruction(e_hat: Float[Tensor, "batch d"], error: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """Return how badly dead features alone explain the error that living ones leave (AuxK), as a fraction of it.

    Source: Gao et al. 2024, arXiv:2406.04093. We divide by the variance of the error, as their code does.
    """
    error = error.detach()
    variance = (error - error.mean(0)).square().sum(-1).mean()
    return (e_hat - error).square().sum(-1).mean() / variance.clamp(min=1e-12)


def l1(f: Float[Tensor, "batch d_sae"], norms: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
    """Return the mean over tokens of ``sum_i f_i |W_dec[i]|``: what a free decoder cannot shrink by growing its rows.

    Source: Anthropic, Circuits Updates April 2024.
    """
    return (f * norms).sum(-1).mean()


def tanh_sparsity(
    f: Float[Tensor, "batch d_sae"], norms: Float[Tensor, " d_sae"], sharpness: float = 4.0
) -> Float[Tensor, ""]:
    """Return the mean over tokens of ``sum_i tanh(sharpness * f_i |W_dec[i]|)``: a smooth count of what fires.

    Source: Anthropic, Circuits Updates January 2025.
    """
    return torch.tanh(sharpness * f * norms).sum(-1).mean()


def low_preactivations(
    z: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], norms: Float[Tensor, " d_sae"]
) -> Float[Tensor, ""]:
    """Return the mean over tokens of ``sum_i relu(threshold_i - z_i) |W_dec[i]|``: a pull on features that never fire.

    Source: Anthropic, Circuits Updates January 2025.
    """
    return ((threshold - z).relu() * norms).sum(-1).mean()


def l0_step(z: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float) -> Float[Tensor, ""]:
    """Return the mean count of ``z_i > threshold_i``, whose gradient moves the thresholds alone.

    Source: Rajamanoharan et al. 2024, arXiv:2407.14435: the derivative of the step is a rectangle of that bandwidth.
    """
    counts: Tensor = _Step.apply(z, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return counts.sum(-1).mean()


def jumprelu(
    z: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float, to_input: bool = False
) -> Float[Tensor, "batch d_sae"]:
    """Return ``z`` where it exceeds the threshold, else 0, with a straight-through gradient for the threshold.

    Args:
        to_input: Let the gradient of the jump reach ``z`` too, as Anthropic's tanh recipe does.
    Source: Rajamanoharan et al. 2024, arXiv:2407.14435.
    """
    f: Tensor = _Jump.apply(z, threshold, bandwidth, to_input)  # type: ignore[no-untyped-call]
    return f


class _Compared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_hat: Tensor, x: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        error = x - x_hat
        ctx.save_for_backward(error, variance)
        ctx.mark_non_differentiable(error)
        return torch.dot(error.flatten(), error.flatten()) / (len(error) * variance), error

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None]:
        error, variance = ctx.saved_tensors  # type: ignore[attr-defined]
        to_x_hat = error * (-2 * grad / (len(error) * variance))
        return to_x_hat, -to_x_hat if ctx.needs_input_grad[1] else None, None  # type: ignore[attr-defined]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward((z - threshold).abs() < bandwidth / 2)
        ctx.bandwidth = bandwidth  # type: ignore[attr-defined]
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[None, Tensor, None]:
        (near,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return None, -(grad * near).sum(0) / ctx.bandwidth, None  # type: ignore[attr-defined]


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, threshold: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input  # type: ignore[attr-defined]
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, threshold = ctx.saved_tensors  # type: ignore[attr-defined]
        jump = ((z - threshold).abs() < ctx.bandwidth / 2) * (threshold / ctx.bandwidth) * grad  # type: ignore[attr-defined]
        grad_z = grad * (z > threshold)
        return grad_z + jump if ctx.to_input else grad_z, -jump.sum(0), None, None  # type: ignore[attr-defined]
