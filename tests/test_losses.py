"""Training losses: known values, and gradients that go where they should."""

import pytest
import torch

from hfsae.sae import losses


@pytest.fixture
def x():
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def test_reconstruction_is_one_for_the_mean_and_zero_for_x_itself(x):
    variance = (x - x.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(losses.reconstruction(x.mean(0).expand_as(x), x, variance), torch.tensor(1.0))
    assert losses.reconstruction(x, x, variance) == 0


def test_dead_reconstruction_is_scale_free_and_leaves_the_error_alone(x):
    error = x.clone().requires_grad_()
    e_hat = (0.5 * x).requires_grad_()
    loss = losses.dead_reconstruction(e_hat, error)
    torch.testing.assert_close(loss, losses.dead_reconstruction(10 * e_hat, 10 * error))
    loss.backward()
    assert error.grad is None
    assert e_hat.grad is not None


def test_l1_does_not_change_when_a_row_grows_and_its_feature_shrinks(x):
    f, norms = x.relu(), torch.ones(8)
    torch.testing.assert_close(losses.l1(f, norms), losses.l1(f / 4, norms * 4))


def test_tanh_sparsity_counts_what_fires_strongly():
    f = torch.tensor([[0.0, 100.0, 100.0], [0.0, 0.0, 100.0]])
    torch.testing.assert_close(losses.tanh_sparsity(f, torch.ones(3)), torch.tensor(1.5))


def test_low_preactivations_pull_only_below_the_threshold():
    z = torch.tensor([[0.2, 2.0]], requires_grad=True)
    losses.low_preactivations(z, torch.ones(2), torch.ones(2)).backward()
    assert z.grad.tolist() == [[-1.0, 0.0]]


def test_l0_step_counts_and_moves_the_threshold_alone():
    z = torch.tensor([[0.5, 1.01, 3.0]], requires_grad=True)
    threshold = torch.ones(3, requires_grad=True)
    count = losses.l0_step(z, threshold, 0.1)
    assert count == 2
    count.backward()
    assert z.grad is None
    torch.testing.assert_close(threshold.grad, torch.tensor([0.0, -10.0, 0.0]))


@pytest.mark.parametrize("to_input", [False, True])
def test_jumprelu_passes_values_above_the_threshold_and_its_jump_where_asked(to_input):
    z = torch.tensor([[0.5, 1.01, 3.0]], requires_grad=True)
    threshold = torch.ones(3, requires_grad=True)
    f = losses.jumprelu(z, threshold, 0.1, to_input=to_input)
    torch.testing.assert_close(f.detach(), torch.tensor([[0.0, 1.01, 3.0]]))
    f.sum().backward()
    torch.testing.assert_close(threshold.grad, torch.tensor([0.0, -10.0, 0.0]))
    torch.testing.assert_close(z.grad, torch.tensor([[0.0, 11.0 if to_input else 1.0, 1.0]]))
