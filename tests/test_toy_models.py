"""The numbers of the toy models of superposition, exact ones from given weights and trained ones from random starts."""

import math

import pytest
import torch

from hfsae.errors import InvalidValue
from hfsae.toy.closed_form import (
    antipodal_loss,
    antipodal_pair,
    dropped_loss,
    incoherence_bound,
    interference,
    linear_loss,
    mutual_coherence,
    phase_boundary,
    polygon,
    polygon_radius_squared,
    superposed_loss,
    welch_bound,
)
from hfsae.toy.geometry import SHAPES, dimensionality, features_held, gaps, measured_interference, shape
from hfsae.toy.model import ToyConfig, ToyModel, one_active, sparse_inputs, train_toys
from hfsae.toy.phases import SHAPE_DENSITY, holding, phase_grid, settle


def rng(seed=1):
    return torch.Generator().manual_seed(seed)


def toy(*weights, relu=True, b=0.0):
    return ToyModel(W=torch.tensor(weights)[:, None], b=torch.full((len(weights),), b), relu=relu)


def lone_inputs(n):
    return lambda _generator: one_active(n)[None]


@pytest.mark.parametrize(("weights", "loss"), [((1.0, 0.0), 0.5), ((0.6, 0.8), 0.5), ((1.0, -1.0), 1.0)])
def test_linear_pair_in_one_dimension_has_the_known_loss(weights, loss):
    assert toy(*weights, relu=False).loss(one_active(2)) == pytest.approx(loss)


@pytest.mark.parametrize(("weights", "loss"), [((1.0, -1.0), 0.0), ((1.0, 1.0), 1.0)])
def test_relu_holds_the_pair_only_with_the_minus_sign(weights, loss):
    assert toy(*weights).loss(one_active(2)) == pytest.approx(loss)


@pytest.mark.parametrize("a", [0.2, 0.5, 0.7, 2**-0.5, 0.8, 1.0, 1.5])
def test_antipodal_pair_with_its_bias_has_the_closed_form_loss(a):
    wanted = (1 - 2 * a * a) ** 2 if a < 2**-0.5 else 0.0
    assert antipodal_loss(a) == pytest.approx(wanted, abs=1e-9)
    assert float(antipodal_pair(a).loss(one_active(2))) == pytest.approx(wanted, abs=1e-6)


def test_antipodal_features_active_together_cancel():
    both = torch.ones(1, 2)
    assert torch.equal(toy(1.0, -1.0)(both), torch.zeros(1, 2))
    assert toy(1.0, -1.0).loss(both) == 2


def test_most_trained_pairs_with_bias_reach_zero_loss():
    toys = train_toys(ToyConfig(n=2, d=1, toys=20, steps=500, learning_rate=0.03), lone_inputs(2))
    assert (toys.loss(one_active(2)) < 1e-6).sum() > 10


def test_linear_model_with_bias_reaches_zero_loss_on_the_pair():
    config = ToyConfig(n=2, d=1, relu=False, steps=500, learning_rate=0.03)
    assert train_toys(config, lone_inputs(2)).loss(one_active(2)) < 1e-6


def test_linear_model_keeps_the_most_important_features_and_drops_the_rest():
    importance = 0.7 ** torch.arange(5)
    config = ToyConfig(n=5, d=2, relu=False, bias=False, steps=800, learning_rate=0.05)
    trained = train_toys(config, lone_inputs(5), importance)
    assert trained.W[0].norm(dim=-1).tolist() == pytest.approx([1, 1, 0, 0, 0], abs=0.02)
    assert trained.W[0, 0] @ trained.W[0, 1] == pytest.approx(0, abs=0.01)
    assert float(trained.loss(one_active(5), importance)) == pytest.approx(linear_loss(2, importance), abs=1e-3)


def test_linear_model_at_equal_importance_keeps_any_plane():
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=rng())).Q
    rotated = ToyModel(W=torch.eye(5)[:, :2], b=torch.zeros(5), relu=False)
    turned = ToyModel(W=rotation[:, :2], b=torch.zeros(5), relu=False)
    config = ToyConfig(n=5, d=2, relu=False, bias=False, steps=500, learning_rate=0.03)
    for model in (rotated, turned, train_toys(config, lone_inputs(5))):
        assert float(model.loss(one_active(5))) == pytest.approx(0.6, abs=1e-4)
    assert linear_loss(2, torch.ones(5)) == pytest.approx(0.6)


@pytest.mark.parametrize(("n", "squared"), [(3, 0.6667), (5, 1.4472), (8, 3.4142), (16, 13.1371)])
def test_any_number_of_features_fit_on_a_circle_while_one_is_active(n, squared):
    assert polygon_radius_squared(n) == pytest.approx(squared, abs=5e-5)
    model = polygon(n)
    assert model.W.square().sum(dim=-1).tolist() == pytest.approx([squared] * n, rel=1e-4)
    assert model.b.tolist() == pytest.approx([1 - squared] * n, rel=1e-3)
    assert float(model.loss(one_active(n))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("importance", "density"), [(1.0, 0.571), (0.5, 0.444), (0.1, 0.160)])
def test_phase_boundary_is_where_the_two_losses_meet(importance, density):
    boundary = phase_boundary(importance)
    assert boundary == pytest.approx(density, abs=5e-4)
    assert superposed_loss(boundary, importance) == pytest.approx(dropped_loss(boundary, importance))
    assert superposed_loss(boundary / 2, importance) < dropped_loss(boundary / 2, importance)


@pytest.mark.parametrize(("density", "importance"), [(0.1, 1.0), (0.4, 0.5), (0.9, 0.1)])
def test_phase_formulas_are_the_losses_of_their_models(density, importance):
    x = sparse_inputs(400_000, 2, density, rng())[0]
    weights = torch.tensor([1.0, importance])
    dropped = ToyModel(W=torch.tensor([[1.0], [0.0]]), b=torch.tensor([0.0, density / 2]))
    assert float(toy(1.0, -1.0).loss(x, weights)) == pytest.approx(superposed_loss(density, importance), rel=0.02)
    assert float(dropped.loss(x, weights)) == pytest.approx(dropped_loss(density, importance), rel=0.02)


def test_trained_phases_agree_with_the_closed_form_in_nearly_all_cells():
    grid = phase_grid(torch.tensor([1.0, 0.5, 0.1]), torch.tensor([0.05, 0.1, 0.2, 0.35, 0.6, 0.9]), steps=800)
    assert grid.agreement >= 16
    assert not (grid.predicted & ~grid.trained).any()  # trained with a bias, the boundary only moves up


def test_five_features_in_a_plane_go_from_two_to_four_to_a_pentagon():
    density, importance = torch.tensor([1.0, 0.2, 0.05]).repeat_interleave(6), 0.9 ** torch.arange(5)
    config = ToyConfig(n=5, d=2, toys=18, steps=600, learning_rate=0.02)
    toys = train_toys(config, lambda g: sparse_inputs(256, 5, density, g), importance)
    loss = toys.loss(sparse_inputs(20_000, 5, density, rng(2)), importance).view(3, 6)
    dense, sparse, sparsest = (toys.W[6 * row + int(loss[row].argmin())] for row in range(3))
    held = [W[W.norm(dim=-1) > 0.5] for W in (dense, sparse, sparsest)]
    assert [len(W) for W in held] == [2, 4, 5]
    assert gaps(held[0]).tolist() == pytest.approx([90, 270], abs=8)
    assert gaps(held[1]).tolist() == pytest.approx([90] * 4, abs=5)
    assert gaps(held[2]).tolist() == pytest.approx([72] * 5, abs=5)


SHARES = {
    "orthogonal": 1,
    "digon": 1 / 2,
    "triangle": 2 / 3,
    "tetrahedron": 3 / 4,
    "pentagon": 2 / 5,
    "square": 1 / 2,
    "square antiprism": 3 / 8,
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_give_each_feature_the_known_share_of_a_dimension(name):
    vertices = shape(name)
    assert dimensionality(vertices).tolist() == pytest.approx([SHARES[name]] * len(vertices))
    assert float(features_held(vertices)) == pytest.approx(len(vertices))


@pytest.mark.parametrize("name", SHAPE_DENSITY)
def test_trained_toys_settle_into_every_shape(name):
    W = settle(name, restarts=6, steps=600).W
    assert dimensionality(W).tolist() == pytest.approx([SHARES[name]] * len(W), abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_dimensionality_never_adds_up_to_more_than_the_dimensions(seed):
    n, d = 3 + 4 * seed, 2 + seed
    shares = dimensionality(torch.randn(n, d, generator=rng(seed)) * torch.rand(n, 1, generator=rng(seed + 9)))
    assert shares.sum() <= d + 1e-5
    assert shares.max() <= 1 + 1e-6
    assert dimensionality(torch.zeros(2, 3)).tolist() == [0, 0]


def test_more_features_are_held_as_inputs_get_sparser():
    result = holding(20, 5, torch.tensor([1.0, 0.3, 0.1, 0.02]), steps=400, batch=128)
    assert (result.held.diff() > 0).all()
    assert result.held[0] == pytest.approx(5, abs=0.5)
    assert result.held[-1] > 20
    assert (result.dimensionality.sum(dim=-1) <= 5 + 1e-4).all()


@pytest.mark.parametrize(("d", "active", "wanted"), [(64, 5, 0.280), (256, 10, 0.198)])
def test_interference_of_random_features_has_the_known_spread(d, active, wanted):
    assert interference(d, active) == pytest.approx(wanted, abs=1e-3)
    assert measured_interference(d, active) == pytest.approx(wanted, rel=0.05)


def test_incoherence_bound_and_welch_bound_hold():
    assert incoherence_bound(1.0) == 1
    assert incoherence_bound(1 / 7) == pytest.approx(4)
    assert mutual_coherence(shape("square antiprism")) >= welch_bound(8, 3)
    assert mutual_coherence(shape("tetrahedron")) == pytest.approx(welch_bound(4, 3))
    assert welch_bound(4, 3) == pytest.approx(1 / 3)


def test_toys_train_the_same_for_the_same_seed_and_side_by_side_as_alone():
    config = ToyConfig(n=4, d=2, toys=3, steps=20)
    first, second = (train_toys(config, lambda g: sparse_inputs(32, 4, 0.3, g)) for _ in range(2))
    assert torch.equal(first.W, second.W)
    other = train_toys(ToyConfig(n=4, d=2, toys=3, steps=20, seed=1), lambda g: sparse_inputs(32, 4, 0.3, g))
    assert not torch.equal(first.W, other.W)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ToyConfig(n=0, d=1), "n=0, d=1"),
        (lambda: ToyConfig(n=2, d=1, optimizer="adm"), "Did you mean 'adam'"),
        (lambda: polygon_radius_squared(1), "n=1 makes no polygon"),
        (lambda: welch_bound(3, 3), "n > d"),
        (lambda: shape("pentagram"), "Did you mean 'pentagon'"),
        (lambda: settle("hexagon"), "There is no shape 'hexagon'"),
    ],
)
def test_toy_refuses_what_cannot_work(call, message):
    with pytest.raises(InvalidValue, match=message):
        call()


def test_gaps_add_up_to_a_full_turn():
    assert float(gaps(torch.randn(7, 2, generator=rng())).sum()) == pytest.approx(360, abs=1e-3)
    assert math.isclose(float(gaps(shape("pentagon"))[0]), 72, abs_tol=1e-3)
