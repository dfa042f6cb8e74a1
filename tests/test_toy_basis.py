"""A privileged basis shows in the kurtosis of coordinates; SGD has none, Adam and element-wise functions make one."""

import pytest
import torch
from dictionaries import as_in_production
from test_tokens import make_tokenizer

from hfsae.errors import InvalidValue
from hfsae.sites import Site
from hfsae.toy.basis import kurtosis, optimizer_privileges, privilege, rotation, site_privileges
from hfsae.toy.model import ToyConfig, sparse_inputs, train_toys


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_kurtosis_is_3_for_a_gaussian_1_for_a_coin_and_9_fifths_for_a_uniform():
    x = torch.stack(
        [
            torch.randn(200_000, generator=rng()),
            torch.randint(2, (200_000,), generator=rng()).float(),
            torch.rand(200_000, generator=rng()),
        ],
        dim=-1,
    )
    assert kurtosis(x).tolist() == pytest.approx([3, 1, 1.8], abs=0.05)
    assert kurtosis(5 * x + 2).tolist() == pytest.approx(kurtosis(x).tolist(), rel=1e-3)


def test_rotations_keep_lengths_and_are_drawn_by_their_generator():
    turn = rotation(6, rng())
    assert torch.allclose(turn @ turn.T, torch.eye(6), atol=1e-5)
    assert torch.equal(turn, rotation(6, rng()))


def test_coordinates_that_are_sparse_stand_out_and_gaussian_ones_do_not():
    gaussian = torch.randn(20_000, 12, generator=rng())
    sparse = gaussian * (torch.rand(20_000, 12, generator=rng(1)) < 0.1)
    assert abs(privilege("gaussian", gaussian).own - privilege("gaussian", gaussian).turned) < 0.05
    assert privilege("sparse", sparse).deviations > 20
    assert privilege("sparse, turned", sparse @ rotation(12, rng(2))).own < privilege("sparse", sparse).own / 3


@pytest.mark.parametrize(("optimizer", "follows"), [("sgd", True), ("adam", False)])
def test_a_turned_start_ends_turned_with_sgd_and_elsewhere_with_adam(optimizer, follows):
    config = ToyConfig(n=8, d=3, steps=60, learning_rate=0.01, optimizer=optimizer)
    start, turn = torch.randn(1, 8, 3, generator=rng()) / 3, rotation(3, rng(1))
    plain, turned = (
        train_toys(config, lambda g: sparse_inputs(64, 8, 0.3, g), start=W).W for W in (start, start @ turn)
    )
    assert torch.allclose(plain @ turn, turned, atol=1e-3) == follows
    assert not torch.allclose(plain, start, atol=1e-2)


def test_adam_privileges_the_coordinates_of_toys_and_sgd_does_not():
    found = optimizer_privileges(toys=6, steps=400)
    adam, sgd = (torch.tensor([row.own - row.turned for row in found[name]]) for name in ("adam", "sgd"))
    assert (adam < -0.1).all()  # features lean away from the axes, so tails are lighter, not heavier
    assert sgd.mean().abs() < 0.06


def test_sites_of_a_model_are_read_without_first_and_special_tokens(tiny_gpt2):
    tokenizer = make_tokenizer(bos_token="<bos>", eos_token="<eos>")
    texts = ["w5 w6 w7 w9 w3 w4 w8", "w3 w4 w9 w9 w12"]
    sites = [Site(site="resid_post", layer=1), Site(site="mlp_act", layer=1)]
    rows = site_privileges(tiny_gpt2, texts, sites, tokenizer=tokenizer)
    assert [row.name for row in rows] == [str(site) for site in sites]
    assert all(1 <= row.own <= row.largest for row in rows)
    assert rows == site_privileges(tiny_gpt2, texts, sites, tokenizer=tokenizer)


def test_privilege_refuses_what_has_no_coordinates_to_compare():
    with as_in_production(), pytest.raises(InvalidValue, match=r"x is \[5, 1\]"):
        privilege("line", torch.zeros(5, 1))
