import pytest
import torch

from hfsae.errors import InvalidValue
from hfsae.toy.recovery import absorption, match, recovery
from hfsae.toy.worlds import FIRINGS, World


def rng(seed=1):
    return torch.Generator().manual_seed(seed)


class Truth:
    """The dictionary that knows the codes: the ceiling of every score."""

    def __init__(self, world, codes):
        self.W_dec, self.codes = world.directions, codes

    def encode(self, x):
        return self.codes

    def decode(self, f):
        return f @ self.W_dec


@pytest.mark.parametrize("name", FIRINGS)
def test_world_has_the_mean_l0_and_magnitudes_it_promises(name):
    world = World(name=name, n=128, d=32, l0=4.0)
    x, codes = world.sample(20_000, rng())
    values = codes[codes > 0]
    assert (codes > 0).sum(dim=-1).float().mean() == pytest.approx(4.0, rel=0.03)
    assert values.mean() == pytest.approx(1.0, abs=0.01)
    assert values.std() == pytest.approx(0.3, abs=0.01)
    assert values.min() >= 0.2
    assert (x - codes @ world.directions).std() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("name", FIRINGS)
def test_world_is_the_same_for_the_same_seeds_and_streams_what_it_samples(name):
    world, twin = (World(name=name, n=64, d=16, l0=2.0, seed=3) for _ in range(2))
    assert torch.equal(world.directions, twin.directions)
    assert torch.equal(world.sample(50, rng())[0], twin.sample(50, rng())[0])
    assert not torch.equal(world.directions, World(name=name, n=64, d=16, l0=2.0, seed=4).directions)
    stream = list(world.activations(100, batch=64, seed=1))
    assert [len(batch) for batch in stream] == [64, 36]
    assert torch.equal(stream[0], world.sample(64, rng(1))[0])


def test_uniform_features_fire_equally_often_and_zipf_ones_by_rank():
    uniform = (World(n=64, d=16, l0=4.0).sample(50_000, rng())[1] > 0).float().mean(dim=0)
    zipf = (World(name="zipf", n=64, d=16, l0=4.0).sample(50_000, rng())[1] > 0).float().mean(dim=0)
    assert (uniform - 4 / 64).abs().max() < 0.006
    assert zipf.max() < 0.31
    assert zipf[9] / zipf[39] == pytest.approx(4.0, rel=0.1)


def test_hierarchical_children_exclude_each_other_and_imply_their_parent():
    world = World(name="hierarchical", n=64, d=16, l0=4.0)
    fired = world.sample(50_000, rng())[1] > 0
    parent, children = fired[:, world.trees[:, 0]], fired[:, world.trees[:, 1:]]
    assert children.sum(dim=-1).max() == 1
    assert not (children.any(dim=-1) & ~parent).any()
    assert children.any(dim=-1).sum() / parent.sum() == pytest.approx(0.75, abs=0.01)
    first, second = fired[:, 32:48:2], fired[:, 33:48:2]
    assert (first & second).sum() / first.sum() == pytest.approx(0.6, abs=0.01)
    assert first.float().mean() == pytest.approx(float(second.float().mean()), rel=0.05)


def test_correlated_features_of_a_group_fire_together_half_of_the_time():
    fired = World(name="correlated", n=64, d=16, l0=4.0).sample(50_000, rng())[1] > 0
    assert (fired[:, 0] & fired[:, 1]).sum() / fired[:, 0].sum() == pytest.approx(0.5, abs=0.03)
    assert (fired[:, 0] & fired[:, 8]).sum() / fired[:, 0].sum() == pytest.approx(4 / 64, abs=0.03)


@pytest.mark.parametrize("coherence", [0.0, 0.3, 0.7])
def test_coherence_is_the_mean_cosine_within_a_group_of_four(coherence):
    directions = World(n=512, d=64, l0=4.0, coherence=coherence).directions
    cosine = directions @ directions.T
    assert cosine[torch.arange(0, 512, 4), torch.arange(1, 512, 4)].mean() == pytest.approx(coherence, abs=0.03)
    assert cosine[torch.arange(0, 508), torch.arange(4, 512)].mean() == pytest.approx(0, abs=0.02)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(512))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "unifrom"}, "Did you mean 'uniform'"),
        ({"name": "hierarchical", "n": 60}, "multiple of 8"),
        ({"l0": 40.0}, "l0=40.0 is out of range"),
        ({"noise": -1.0}, "noise=-1.0"),
        ({"coherence": 1.0}, "coherence=1.0"),
    ],
)
def test_world_refuses_settings_that_cannot_work(change, message):
    with pytest.raises(InvalidValue, match=message):
        World(**{"n": 64, "d": 16, "l0": 2.0} | change)


@pytest.mark.parametrize("name", FIRINGS)
def test_the_truth_itself_scores_perfectly(name):
    world = World(name=name, n=128, d=32, l0=4.0)
    x, codes = world.sample(10_000, rng())
    scores = recovery(Truth(world, codes), world, x, codes)
    assert (scores.rec90, scores.precision, scores.recall, scores.f1, scores.dead) == (1, 1, 1, 1, 0)
    assert scores.mmcs_forward == pytest.approx(1)
    assert scores.mmcs_backward == pytest.approx(1)
    assert scores.l0 == pytest.approx(4, rel=0.05)
    assert scores.fvu == pytest.approx(32 * 0.02**2 / float(x.var(dim=0).sum()), rel=0.02)
    assert scores.absorption == (0 if name == "hierarchical" else None)
    assert scores.to_dict()["rec90"] == 1


def test_scores_do_not_depend_on_the_order_and_length_of_rows():
    world = World(name="hierarchical", n=64, d=16, l0=2.0)
    x, codes = world.sample(4_000, rng())
    order = torch.randperm(64, generator=rng())
    truth, shuffled = Truth(world, codes), Truth(world, codes[:, order] / 3)
    shuffled.W_dec = 3 * world.directions[order]
    want, got = (recovery(each, world, x, codes).to_dict() for each in (truth, shuffled))
    assert got == pytest.approx(want, abs=1e-5)


def test_features_without_a_row_count_as_missed():
    world = World(n=64, d=16, l0=2.0)
    x, codes = world.sample(4_000, rng())
    half = Truth(world, codes[:, :32])
    half.W_dec = world.directions[:32]
    scores = recovery(half, world, x, codes)
    assert scores.recall == pytest.approx(0.5)
    assert scores.rec90 == pytest.approx(0.5)
    assert scores.mmcs_backward == pytest.approx(1)


def test_match_gives_each_feature_a_row_of_its_own():
    assert match(torch.tensor([[0.9, 0.8], [0.8, 0.1]])).tolist() == [1, 0]
    assert sorted(match(torch.tensor([[0.9], [0.8]])).tolist()) == [-1, 0]


def test_absorption_is_the_parent_recall_lost_to_its_children():
    truth = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    absorbed = truth & ~(truth[:, 1:].any(dim=-1, keepdim=True) & (torch.arange(4) == 0))
    trees = torch.arange(4)[None]
    assert absorption(truth, absorbed, trees) == 1
    assert absorption(truth, truth, trees) == 0


def test_recovery_refuses_what_does_not_fit_together():
    world = World(n=64, d=16, l0=2.0)
    x, codes = world.sample(10, rng())
    with pytest.raises(InvalidValue, match="do not fit together"):
        recovery(Truth(world, codes), World(n=64, d=8, l0=2.0), x, codes)
