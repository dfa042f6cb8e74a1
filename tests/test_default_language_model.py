import math

import pytest
import torch

from hfsae.default import language_model as lm
from hfsae.errors import InvalidValue

TEXTS = [f"def function_{n}(x):\n    return x + {n}\n" * 8 for n in range(40)]
RECIPE = lm.Recipe(vocabulary=300, context=32, width=16, blocks=2, heads=2, rows=4, steps=6)


@pytest.fixture(scope="module")
def tokenizer():
    return lm.train_tokenizer(TEXTS, RECIPE)


@pytest.fixture
def new_trainer(tokenizer, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)  # a minute of compiling proves nothing here

    def make():
        tokens = lm.tokens_of(TEXTS, tokenizer)
        streams = dict.fromkeys(lm.mixture(0.0), tokens)
        return lm.LanguageModelTrainer(lm.new_model(RECIPE, tokenizer), streams, RECIPE, tokenizer.bos_token_id)

    return make


def test_the_tokenizer_gives_texts_back_and_begins_them_with_its_special_token(tokenizer):
    ids = tokenizer(TEXTS[0], truncation=False, verbose=False).input_ids
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXTS[0]


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 24), (2, 24, 8)])
def test_orthogonal_brings_singular_values_near_one_and_keeps_their_directions(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(lm.orthogonal(matrices))
    assert 0.3 < float(values.min()) <= float(values.max()) < 1.4
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(lm.orthogonal(matrices).flatten(1), (u @ v).flatten(1)).min() > 0.9


def test_muon_treats_a_fused_matrix_as_its_three_parts():
    gradient = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
    fused = torch.nn.Parameter(torch.zeros(8, 24))
    parts = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    fused.grad = gradient.clone()
    for part, piece in zip(parts, gradient.chunk(3, dim=1), strict=True):
        part.grad = piece.clone()
    lm.Muon([fused], 0.1).step()
    lm.Muon(parts, 0.1).step()
    torch.testing.assert_close(fused.detach(), torch.cat([part.detach() for part in parts], dim=1))


def test_windows_give_every_token_once_per_epoch_and_overlap_by_one():
    windows = lm.Windows(torch.arange(1000, dtype=torch.int32), 10, seed=0)
    rows = windows.take(98)
    assert torch.equal(rows, rows[:, :1] + torch.arange(11))
    predicted = rows[:, 1:].flatten()
    assert len(predicted.unique()) == len(predicted) == 980
    assert not torch.equal(windows.take(98), rows)


def test_windows_refuse_too_few_tokens():
    with pytest.raises(InvalidValue, match="12 tokens do not fill rows of 10"):
        lm.Windows(torch.arange(12), 10, seed=0)


def test_recipe_refuses_a_run_of_no_steps():
    with pytest.raises(InvalidValue, match="steps=0"):
        lm.Recipe(steps=0)


def test_mixture_is_a_distribution_that_ends_mostly_with_the_library():
    for progress in (0.0, 0.3, 0.5, 0.99):
        assert math.isclose(sum(lm.mixture(progress).values()), 1.0)
    assert lm.mixture(0.99)["library"] > 0.5 > lm.mixture(0.0)["library"]


def test_rates_rise_hold_and_fall_to_zero():
    factors = [lm.rate_factor(step / 100, RECIPE) for step in range(101)]
    assert factors[0] < 0.01
    assert factors[10] == 1.0
    assert factors[-1] == 0.0


def test_training_learns_and_an_interrupted_run_ends_with_the_same_weights(new_trainer, tmp_path):
    whole = new_trainer()
    losses = [whole.step() for _ in range(RECIPE.steps)]
    assert losses[-1] < losses[0]
    interrupted = new_trainer()
    for _ in range(3):
        interrupted.step()
    interrupted.save(tmp_path / "state.pt")
    resumed = new_trainer()
    lm.train_language_model(resumed, checkpoint=tmp_path / "state.pt", every=2)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_bits_per_byte_of_a_uniform_model_is_known(tokenizer):
    model = lm.new_model(RECIPE, tokenizer)
    for parameter in model.parameters():
        parameter.data.zero_()
    tokens = sum(len(tokenizer(text, add_special_tokens=False).input_ids) for text in TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    expected = tokens * math.log2(len(tokenizer)) / size
    assert math.isclose(lm.bits_per_byte(model, tokenizer, TEXTS), expected, rel_tol=1e-5)
