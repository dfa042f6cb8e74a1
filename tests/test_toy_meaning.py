"""What elements stand for: the scores are their definitions, and neurons are scored like features."""

import pytest
import torch
from dictionaries import as_in_production
from test_tokens import make_tokenizer

from hfsae import SAE, SAEConfig, attach
from hfsae.errors import InvalidValue
from hfsae.sae.sparse import SparseFeatures
from hfsae.toy.comparison import Interval, Samples, compare_with_controls, text_samples, world_samples
from hfsae.toy.controls import neuron_basis, random_directions
from hfsae.toy.meaning import CONTEXTS, meaning
from hfsae.toy.worlds import World

WORLD = World(n=64, d=16, l0=2.0)


def knowing_the_truth(world: World) -> SAE:
    """A TopK dictionary whose directions are the true ones."""
    sae = SAE(SAEConfig(architecture="topk", d_in=world.d, d_sae=world.n, k=2)).requires_grad_(False)
    for parameter, value in ((sae.W_enc, world.directions), (sae.W_dec, world.directions)):
        parameter.copy_(value)
    for bias in (sae.b_enc, sae.b_dec):
        bias.zero_()
    return sae


def sparse(f: torch.Tensor) -> SparseFeatures:
    values, indices = f.topk(f.shape[1], dim=-1)
    return SparseFeatures(values, indices, d_sae=f.shape[1])


def drawn_labels(kinds: int, rng: torch.Generator) -> torch.Tensor:
    """Labels in two slots that never hold the same one, some of them empty."""
    first, second = torch.randint(-1, kinds, (2, 400), generator=rng)
    return torch.stack([first, torch.where(second >= 0, second + kinds, -1)], dim=-1)


def by_hand(f, tokens, masks, picking):
    """Scores of one element, from the definition."""

    def purity(side, label):
        top = f[side].argsort(descending=True, stable=True)[: min(CONTEXTS, int((f[side] > 0).sum()))]
        return (tokens[side][top] == label).any(-1).float().mean()

    def f1(side, label):
        holds, fires = (masks[side] == label).any(-1), f[side] > 0
        return 2 * (holds & fires).sum() / (holds.sum() + fires.sum())

    scores = []
    for score, labels in ((purity, tokens), (f1, masks)):
        known = range(int(labels.max()) + 1)
        scores.append(float(score(~picking, max(known, key=lambda label: float(score(picking, label))))))
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_their_definition_element_by_element(seed):
    rng = torch.Generator().manual_seed(seed)
    f = torch.randn(400, 6, generator=rng).sub(0.5).relu()
    tokens, masks = (drawn_labels(kinds, rng) for kinds in (5, 9))
    picking = torch.rand(400, generator=rng) < 0.5
    found = meaning(sparse(f), tokens, masks, picking)
    for element in range(6):
        wanted = by_hand(f[:, element], tokens, masks, picking)
        assert [float(found.purity[element]), float(found.f1[element])] == pytest.approx(wanted)


def test_an_element_that_is_its_label_scores_one_and_a_silent_one_is_left_out():
    labels = torch.arange(4).repeat(10)[:, None]
    f = torch.nn.functional.one_hot(labels[:, 0], 5).float()
    found = meaning(sparse(f), labels, labels, torch.arange(40) % 8 < 4)
    assert found.purity.tolist() == [1] * 4
    assert found.f1.tolist() == [1] * 4


def test_labels_are_not_picked_where_they_are_scored():
    f = torch.ones(40, 1)
    picking = torch.arange(40) < 20
    labels = (~picking).long()[:, None]  # what holds on one side holds nowhere on the other
    found = meaning(sparse(f), labels, labels, picking)
    assert found.purity.tolist() == found.f1.tolist() == [0]


def test_meaning_refuses_what_does_not_fit_together():
    f, labels = sparse(torch.ones(4, 2)), torch.zeros(4, 1, dtype=torch.int64)
    with as_in_production(), pytest.raises(InvalidValue, match="a cut of 3"):
        meaning(f, labels, labels, torch.tensor([True, False, True]))
    with pytest.raises(InvalidValue, match="one side without samples"):
        meaning(f, labels, labels, torch.ones(4, dtype=torch.bool))


def test_controls_keep_k_and_bias_and_the_whole_neuron_basis_reconstructs():
    like = knowing_the_truth(WORLD)
    like.b_dec.fill_(0.5)
    basis, random = neuron_basis(like), random_directions(like, seed=0)
    assert (basis.config.k, basis.config.d_sae, random.config.k, random.config.d_sae) == (2, 32, 2, 64)
    assert torch.equal(basis.b_dec, like.b_dec)
    assert torch.allclose(random.W_dec.norm(dim=-1), torch.ones(64))
    assert torch.equal(random.W_dec, random_directions(like, seed=0).W_dec)
    assert not torch.equal(random.W_dec, random_directions(like, seed=1).W_dec)
    spared = SAE(SAEConfig(architecture="matching_pursuit", d_in=16, d_sae=32, k=16))
    assert random_directions(spared, seed=0).config.k == 4
    whole = neuron_basis(SAE(SAEConfig(architecture="topk", d_in=16, d_sae=32, k=16)))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(whole(x), x, atol=1e-6)


def test_controls_refuse_a_dictionary_without_k():
    with pytest.raises(InvalidValue, match="standard dictionary has no k"):
        neuron_basis(SAE(SAEConfig(architecture="standard", d_in=4, d_sae=8)))


def test_cuts_keep_groups_together_and_differ_by_seed():
    group = torch.arange(9).repeat_interleave(torch.tensor([50, 1, 2, 30, 4, 5, 6, 20, 8]))
    labels = torch.zeros(len(group), 1, dtype=torch.int64)
    samples = Samples(torch.zeros(len(group), 2), labels, labels, group)
    cuts = [samples.cut(seed) for seed in range(4)]
    for cut in cuts:
        assert all(len(cut[group == g].unique()) == 1 for g in range(9))
        assert 0.3 < cut.float().mean() < 0.7
    assert torch.equal(cuts[0], samples.cut(0))
    assert any(not torch.equal(cuts[0], cut) for cut in cuts[1:])


def test_on_a_known_world_true_features_stand_for_themselves_and_neurons_do_not():
    samples = world_samples(WORLD, 8_000, seed=1)
    assert (samples.tokens >= 0).sum() == pytest.approx(16_000, rel=0.05)
    standing = {row.name: row for row in compare_with_controls(knowing_the_truth(WORLD), samples)}
    trained, neurons, random = (standing[n] for n in ("trained dictionary", "neuron basis", "random directions"))
    assert trained.purity.mean > 0.9
    assert standing["trained, busiest 32"].live == 32
    for other in (neurons, random):
        assert trained.purity.mean - trained.purity.half_width > other.purity.mean + other.purity.half_width + 0.2
        assert trained.f1.mean - trained.f1.half_width > other.f1.mean + other.f1.half_width + 0.2


def test_text_is_labelled_by_its_tokens_those_before_and_their_classes(tiny_gpt2):
    tokenizer = make_tokenizer(bos_token="<bos>", eos_token="<eos>")
    dictionary = SAE(SAEConfig(architecture="topk", d_in=32, d_sae=40, k=4))
    attachment = attach(tiny_gpt2, 1, sae=dictionary)
    texts = ["w3 w4", "w5 w3 w9 w9 w7 w4"]
    samples = text_samples(attachment, texts, tokenizer=tokenizer, context=16)
    assert samples.x.shape == (len(samples.tokens), 32)
    assert samples.neurons.shape == (len(samples.tokens), 128)
    vocabulary = len(tokenizer)
    following = samples.group[1:] == samples.group[:-1]
    assert torch.equal(samples.tokens[1:, 1][following] - vocabulary, samples.tokens[:-1, 0][following])
    assert torch.equal(samples.masks[:, :2], samples.tokens)
    assert samples.group.unique().tolist() == [0, 1]
    assert samples.masks[:, 2:].min() == -1
    wide = SAE(SAEConfig(architecture="topk", d_in=32, d_sae=200, k=4))
    names = [row.name for row in compare_with_controls(wide, samples, seeds=(0, 1))]
    assert names == [
        *("trained dictionary", "neuron basis", "MLP neurons", "trained, busiest 128", "random directions")
    ]
    attachment.detach()


def test_interval_is_students_and_needs_two_to_ten_seeds():
    interval = Interval.of([1.0, 2.0, 3.0])
    assert (interval.mean, interval.half_width) == (2, pytest.approx(4.303 / 3**0.5))
    with pytest.raises(InvalidValue, match="There are 1 seeds"):
        Interval.of([1.0])
