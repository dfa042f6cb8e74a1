"""Features that do the work of two are found by what they leave over, and a dead feature takes one half."""

import pytest
import torch

from hfsae import SAE
from hfsae.sae.config import SAEConfig
from hfsae.train.config import TrainConfig
from hfsae.train.recipe import Shape
from hfsae.train.recipes import RECIPES
from hfsae.train.splitting import split, two_heaps

D, N = 16, 6
MERGED = 2


def world(count=4000, noise=0.05):
    """Activations of N orthogonal features, one or two of which fire; features 2 and 5 never together."""
    generator = torch.Generator().manual_seed(0)
    codes = (torch.rand(count, N, generator=generator) < 0.2).float()
    codes[:, 5] *= codes[:, MERGED] == 0
    codes *= 1 + 0.1 * torch.randn(count, N, generator=generator)
    return codes @ torch.eye(D)[:N] + noise * torch.randn(count, D, generator=generator)


def merged_rows():
    """The features of that world, but for 2 and 5, for which one row stands; row 5 is dead."""
    rows = torch.eye(D)[:N].clone()
    rows[MERGED] = (rows[MERGED] + rows[5]) / 2**0.5
    rows[5] = -rows[5]
    return rows


def dictionary(W_enc, W_dec, **fields):
    config = SAEConfig(architecture="jumprelu", d_in=D, d_sae=N, b_pre="none", **fields)
    sae = SAE(config)
    sae.load_state_dict(
        {
            "W_enc": W_enc,
            "W_dec": W_dec,
            "b_enc": torch.zeros(N),
            "b_dec": torch.zeros(W_dec.shape[1]),
            "threshold": torch.full((N,), 0.4),
        }
    )
    return sae


def recipe_with(name, W_enc, W_dec, d_out=D):
    recipe = RECIPES[name](Shape(D, N, d_out, d_out != D), TrainConfig(architecture=name, d_sae=N, k=1))
    recipe.load({"W_enc": W_enc, "W_dec": W_dec, "b_enc": torch.arange(N) / 10})
    return recipe


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def test_only_the_feature_that_does_the_work_of_two_is_found_and_the_halves_are_the_two():
    rows, x = merged_rows(), world()
    heaps = two_heaps(dictionary(rows, rows), x, x, seed=0)
    assert heaps.features.tolist() == [MERGED]
    recipe = recipe_with("jumprelu", rows, rows)
    recipe.threshold.data = torch.arange(N) / 5
    assert split(recipe, torch.optim.Adam(recipe.parameters()), heaps, torch.tensor([5])).tolist() == [5]
    truth = torch.eye(D)[[MERGED, 5]]
    for weight in (recipe.W_dec, recipe.W_enc):
        halves = weight[[MERGED, 5]].detach()
        assert min(float((truth @ half).max()) for half in halves) > 0.98
        assert abs(float(cosine(*halves))) < 0.2
        assert torch.equal(weight[[0, 1, 3, 4]], rows[[0, 1, 3, 4]])
    assert recipe.threshold[5] == recipe.threshold[MERGED]
    assert recipe.b_enc[5] == recipe.b_enc[MERGED]


def test_a_dictionary_of_the_true_features_is_left_alone():
    rows = torch.eye(D)[:N].clone()
    for seed in range(3):
        assert not len(two_heaps(dictionary(rows, rows), world(), world(), seed=seed).features)


def test_a_transcoder_splits_what_it_reads_and_what_it_writes_each_in_its_own_space():
    to_output = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1))).Q[:, :12]
    rows, x = merged_rows(), world()
    written = torch.nn.functional.normalize(rows @ to_output, dim=1)
    sae = dictionary(rows, written, d_out=12, write_site="mlp_out", write_layer=0, site="mlp_in", layer=0)
    heaps = two_heaps(sae, x, x @ to_output, seed=0)
    assert MERGED in heaps.features.tolist()
    place = heaps.features.tolist().index(MERGED)
    difference = torch.eye(D)[MERGED] - torch.eye(D)[5]
    assert abs(float(cosine(heaps.readings[place], difference))) > 0.9
    assert heaps.directions.shape[1] == 12


@pytest.mark.parametrize("dead", [[], [5], [5, 0, 1]])
def test_there_are_as_many_splits_as_dead_and_as_doubled_features(dead):
    rows, x = merged_rows(), world()
    heaps = two_heaps(dictionary(rows, rows), x, x, seed=0)
    recipe = recipe_with("topk", rows, rows)
    taken = split(recipe, torch.optim.Adam(recipe.parameters()), heaps, torch.tensor(dead, dtype=torch.int64))
    assert taken.tolist() == dead[:1]


def test_the_optimizer_forgets_where_the_halves_were_heading_and_no_other_parameter_moves():
    rows, x = merged_rows(), world()
    recipe = recipe_with("topk", rows, rows)
    optimizer = torch.optim.Adam(recipe.parameters(), lr=0.0)
    recipe.W_dec.sum().backward()
    recipe.W_dec.grad += torch.arange(N)[:, None]
    optimizer.step()
    bias = recipe.b_dec.detach().clone()
    split(recipe, optimizer, two_heaps(dictionary(rows, rows), x, x, seed=0), torch.tensor([5]))
    state = optimizer.state[recipe.W_dec]
    assert state["exp_avg"][[MERGED, 5]].abs().sum() == 0
    assert state["exp_avg"][[0, 1, 3, 4]].abs().min() > 0
    assert torch.equal(state["exp_avg_sq"][5], state["exp_avg_sq"][MERGED])
    assert torch.equal(recipe.b_dec, bias)
