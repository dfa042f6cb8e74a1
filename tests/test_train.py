"""Training: every architecture finds known features, sparse gradients are the dense ones, settings are checked."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from hfsae.dictionary import SAE
from hfsae.errors import HfsaeWarning, InvalidType, InvalidValue, Mismatch, MissingPackage, TrainingError
from hfsae.sae.architectures import ARCHITECTURES
from hfsae.toy.worlds import World
from hfsae.train import DataConfig, DeadConfig, History, LogTo, OptimizerConfig, TrainConfig, train
from hfsae.train.calibration import Scales, threshold_for, unshrunk
from hfsae.train.dead_features import DeadFeatures
from hfsae.train.recipe import Moment, Shape
from hfsae.train.recipes import RECIPES
from hfsae.train.schedules import controlled, learning_rate_factor
from hfsae.train.stepping import Stepper

WORLD = World(name="uniform", n=64, d=24, l0=2.0)
SHORT = {"d_sae": 64, "k": 2, "tokens": 256 * 200, "batch_size": 256, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def x():
    return WORLD.sample(40_000, torch.Generator().manual_seed(7))[0]


def quick(**changes):
    return TrainConfig(**{"d_sae": 32, "k": 4, "tokens": 4096, "batch_size": 256, **changes})


def fvu(sae, x):
    with torch.no_grad():
        return float((x - sae(x)).square().sum() / (x - x.mean(0)).square().sum())


def test_every_architecture_has_a_recipe():
    assert set(RECIPES) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_train_explains_a_known_world_at_the_l0_asked_for(architecture, x):
    sae = train(activations=x, config=TrainConfig(architecture=architecture, **SHORT), progress=False)
    fresh = WORLD.sample(4096, torch.Generator().manual_seed(8))[0]
    l0 = float((sae.encode(fresh) != 0).float().sum(-1).mean())
    assert fvu(sae, fresh) < 0.6
    assert 1.0 < l0 < 3.5
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))


def test_train_finds_the_true_features(x):
    sae = train(activations=x, config=TrainConfig(**{**SHORT, "tokens": 256 * 400}), progress=False)
    cosines = functional.normalize(WORLD.directions, dim=1) @ sae.W_dec.T
    assert (cosines.amax(1) > 0.9).float().mean() > 0.7


@pytest.mark.parametrize("architecture", [name for name, row in ARCHITECTURES.items() if row.kind == "sequential"])
def test_sequential_codes_give_tokens_as_many_features_as_they_need(architecture, x):
    sae = train(activations=x, config=TrainConfig(architecture=architecture, **SHORT), progress=False)
    assert sae.config.k == 4 * SHORT["k"]
    fired, norms = sae.encode_sparse(x[:4096]).l0(), x[:4096].norm(dim=1)
    assert fired.max() <= sae.config.k
    assert fired[norms > norms.median()].float().mean() > fired[norms < norms.median()].float().mean() + 0.5


@pytest.mark.parametrize("architecture", [name for name, row in ARCHITECTURES.items() if row.transcodes])
@pytest.mark.parametrize("skip", [False, True])
def test_train_makes_transcoders(architecture, skip, x):
    y = x @ torch.randn(24, 12, generator=torch.Generator().manual_seed(3))
    config = quick(architecture=architecture, tokens=256 * 60)
    sae = train(activations=(x, y), config=config, skip=skip, progress=False)
    assert sae.config.is_transcoder
    assert (sae.W_skip is not None) == skip
    with torch.no_grad():
        left = (y - sae(x)).square().sum() / (y - y.mean(0)).square().sum()
    assert left < (0.2 if skip else 0.95)


def test_train_twice_gives_the_same_weights(x):
    one, two = (train(activations=x, config=quick(), progress=False).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_train_measures_the_features(x):
    sae = train(activations=x, config=quick(), progress=False)
    statistics = sae.statistics
    assert statistics.tokens == 8192
    torch.testing.assert_close(statistics.density.sum(), torch.tensor(4.0), rtol=0.1, atol=0)
    assert statistics.mean_norm == pytest.approx(float(x.norm(dim=1).mean()), rel=0.05)
    assert (statistics.max >= statistics.mean).all()


def test_train_records_how(x):
    sae = train(activations=x, config=quick(seed=3), progress=False)
    assert sae.config.training["tokens"] == 4096
    assert TrainConfig.from_dict(sae.config.training["config"]) == quick(seed=3)


def test_train_on_a_model_knows_its_place_and_leaves_out_the_first_position(tiny_gpt2):
    ids = torch.randint(3, 96, (64, 32), generator=torch.Generator().manual_seed(0))
    history = History()
    sae = train(tiny_gpt2, ids, layer=1, config=quick(), callbacks=[history], progress=False)
    assert sae.config.place == "resid_post.layer_1"
    assert sae.config.exclude_first_position
    assert history.figures[-1].losses["fvu"] < history.figures[0].losses["fvu"]


def test_train_on_a_model_makes_transcoders(tiny_gpt2):
    ids = torch.randint(3, 96, (64, 32), generator=torch.Generator().manual_seed(0))
    sae = train(tiny_gpt2, ids, layer=0, write_layer=1, config=quick(), progress=False)
    assert sae.config.place == "resid_post.layer_0.to.resid_post.layer_1"


def test_train_from_a_dictionary_begins_where_it_stood(x):
    first = train(activations=x, config=TrainConfig(**SHORT), progress=False)
    config = TrainConfig(**{**SHORT, "tokens": 256, "learning_rate": 1e-9})
    again = train(activations=x, config=config, init_from=first, progress=False)
    torch.testing.assert_close(again.W_enc, first.W_enc, rtol=1e-4, atol=1e-5)
    with pytest.raises(Mismatch, match="d_sae"):
        train(activations=x, config=quick(), init_from=first, progress=False)


def test_sparse_gradients_equal_dense_ones_in_float64():
    torch.manual_seed(0)
    shape, config = Shape(24, 96, 24), TrainConfig(d_sae=96, k=6)
    recipe = RECIPES["topk"](shape, config)
    for parameter in recipe.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    x = torch.randn(128, 24)
    recipe(x, x, Moment()).loss.backward()
    W_enc, b_enc, W_dec, b_dec = (
        getattr(recipe, name).detach().double().requires_grad_() for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    )
    z = (x.double() - b_dec) @ W_enc.T + b_enc
    values, indices = z.topk(6, dim=-1)
    f = torch.zeros_like(z).scatter(-1, indices, values.relu())
    (f @ W_dec + b_dec - x.double()).square().sum(-1).mean().backward()
    for name, dense in (("W_enc", W_enc), ("b_enc", b_enc), ("W_dec", W_dec), ("b_dec", b_dec)):
        torch.testing.assert_close(getattr(recipe, name).grad.double(), dense.grad, rtol=1e-6, atol=1e-6)


def test_scales_undo_what_was_applied_and_keep_the_reconstruction():
    sae = SAE(quick_place())
    tensors = {name: torch.randn_like(tensor) for name, tensor in sae.state_dict().items()}
    there = Scales(3.0, 0.5)
    back = there.undone(there.applied(tensors))
    for name, tensor in tensors.items():
        torch.testing.assert_close(back[name], tensor)


def quick_place():
    from hfsae.sae.config import SAEConfig

    return SAEConfig(architecture="topk", d_in=8, d_sae=16, k=2)


def test_threshold_for_lets_as_many_fire_as_asked():
    torch.manual_seed(0)
    tensors = {"W_enc": torch.randn(64, 8), "b_enc": torch.zeros(64), "b_dec": torch.zeros(8)}
    x = torch.randn(1000, 8)
    threshold = threshold_for(tensors, x, 3.0)
    assert int((x @ tensors["W_enc"].T > threshold).sum()) == 3000


def test_unshrunk_gives_back_what_l1_took_and_changes_no_firing():
    features = torch.eye(16)[:, :12]
    codes = torch.rand(4000, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    x = (codes * (torch.rand(4000, 16, generator=torch.Generator().manual_seed(1)) < 0.2)) @ features
    tensors = {"W_enc": 0.5 * features, "b_enc": torch.zeros(16), "b_dec": torch.zeros(12), "W_dec": features}
    before = (x @ tensors["W_enc"].T).relu()
    unshrunk(tensors, x, x)
    after = (x @ tensors["W_enc"].T + tensors["b_enc"]).relu()
    assert torch.equal(after > 0, before > 0)
    torch.testing.assert_close(after @ features, x, rtol=0.02, atol=0.01)


def test_dead_features_are_counted_in_expected_firings_and_start_again():
    recipe = RECIPES["topk"](Shape(8, 32, 8), TrainConfig(d_sae=32, k=2))
    dead = DeadFeatures(DeadConfig(after_firings=2.0), 32, 2.0)
    recipe.W_enc.data[5] = 0
    recipe.b_enc.data[5] = -9
    optimizer = torch.optim.Adam(recipe.parameters(), fused=True)
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        terms = recipe(x, x, Moment())
        dead.tick(terms)
    assert 5 in dead.dead.tolist()
    assert dead.reseed(recipe, optimizer, terms.error, torch.Generator().manual_seed(0)) >= 1
    assert 5 not in dead.dead.tolist()
    assert recipe.b_enc[5] == 0
    torch.testing.assert_close(recipe.W_dec[5].norm(), torch.tensor(1.0))


def test_dead_features_that_are_silent_on_all_tokens_are_woken():
    recipe = RECIPES["topk"](Shape(8, 32, 8), TrainConfig(d_sae=32, k=2))
    recipe.b_enc.data[5] = -9
    dead = DeadFeatures(DeadConfig(), 32, 2.0)
    x, error = torch.randn(2, 256, 8, generator=torch.Generator().manual_seed(0)).unbind()
    dead.aux_loss(recipe, x, error, torch.tensor([5])).backward()
    assert recipe.b_enc.grad[5] != 0
    assert recipe.W_enc.grad[5].norm() > 0
    assert recipe.W_enc.grad[4].norm() == 0


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "topk"])
def test_settling_keeps_what_fires_at_the_l0_that_was_there(architecture, x):
    recipe = RECIPES[architecture](Shape(24, 64, 24), TrainConfig(d_sae=64, k=3, architecture=architecture))
    sample = x[:2048] / x.square().sum(1).mean().sqrt()
    coefficient = recipe.settle(sample)
    terms = recipe(sample, sample, Moment(1.0, torch.tensor(coefficient)))
    torch.testing.assert_close(terms.l0, torch.tensor(3.0), rtol=0.01, atol=0)
    assert (coefficient > 0) == recipe.controlled


@pytest.mark.parametrize("unit_decoder", [False, True])
def test_decoder_rows_of_the_standard_recipe_are_free_once_it_settled_unless_asked_for(unit_decoder, x):
    recipe = {"unit_decoder": unit_decoder, "start": 0.0}
    stepper = Stepper(Shape(24, 64, 24), TrainConfig(architecture="standard", recipe=recipe, **SHORT))
    for batch in (x[:2048] / x.square().sum(1).mean().sqrt()).split(256):
        stepper.update(batch, batch)
    lengths = stepper.recipe.W_dec.detach().norm(dim=1)
    assert torch.allclose(lengths, torch.ones(64), atol=1e-5) == unit_decoder
    torch.testing.assert_close(stepper.recipe.tensors()["W_dec"].norm(dim=1), torch.ones(64))


def test_learning_rate_rises_holds_and_falls():
    rates = [learning_rate_factor(step, 100, 0.1, 0.2) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[50] == 1
    assert rates[-1] == pytest.approx(1 / 20)


def test_controller_raises_the_coefficient_when_too_much_fires():
    one = torch.tensor(1.0)
    assert controlled(one, torch.tensor(8.0), 4.0, 0.5) > 1
    assert controlled(one, torch.tensor(2.0), 4.0, 0.5) < 1
    assert controlled(one, torch.tensor(4.0), 4.0, 0.5) == 1


def test_iterables_are_trained_on_and_one_that_ends_early_is_said(x):
    train(activations=list(x.split(1000)), config=quick(), progress=False)
    with pytest.warns(HfsaeWarning, match="ended after 2000 of 4096"):
        train(activations=iter(x[:2000].split(500)), config=quick(), progress=False)


def test_a_loss_that_is_not_finite_stops_the_run(x):
    with pytest.raises(TrainingError, match="must be finite"):
        train(activations=x, config=quick(learning_rate=1e30), progress=False)


@pytest.mark.parametrize(
    ("activations", "error", "message"),
    [
        (torch.zeros(0, 8), InvalidValue, "hold no rows"),
        (torch.zeros(100, 8), InvalidValue, "All activations are zero"),
        (torch.full((100, 8), torch.nan), InvalidValue, "NaN or Inf"),
        (torch.zeros(100, 8, dtype=torch.long), InvalidType, "tensors of floats"),
        ([], InvalidValue, "activations are empty"),
        ([torch.randn(99, 8), torch.randn(99, 7)], InvalidValue, "width 7"),
    ],
)
def test_train_refuses_activations_it_cannot_use(activations, error, message):
    with pytest.raises(error, match=message):
        train(activations=activations, config=quick(), progress=False)


def test_train_refuses_arguments_that_do_not_say_what_to_train_on(tiny_gpt2, x):
    with pytest.raises(InvalidType, match="nothing to train on"):
        train()
    with pytest.raises(InvalidType, match="No layer was named"):
        train(tiny_gpt2, torch.ones(4, 8, dtype=torch.long))
    with pytest.raises(InvalidType, match="Expected one of them"):
        train(tiny_gpt2, activations=x)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "topp"}, "Did you mean 'topk'"),
        ({"k": 0}, "k=0"),
        ({"k": 20, "d_sae": 10}, "only d_sae=10"),
        ({"tokens": -1}, "tokens=-1"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_config_refuses_what_cannot_work(fields, message):
    with pytest.raises(InvalidValue, match=message):
        TrainConfig(**fields)


def test_config_parts_refuse_what_cannot_work():
    for make, message in (
        (lambda: OptimizerConfig(warmup=0.9, decay=0.9), "overlap"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "betas"),
        (lambda: DeadConfig(aux_coefficient=-1.0), "aux_coefficient"),
        (lambda: DeadConfig(reseed_until=2.0), "reseed_until"),
        (lambda: DataConfig(context=0), "context=0"),
    ):
        with pytest.raises(InvalidValue, match=message):
            make()
    with pytest.raises(InvalidType, match="whole number"):
        TrainConfig(k=True)
    with pytest.raises(InvalidType, match="seed"):
        TrainConfig(seed=True)


def test_config_round_trips_and_names_unknown_fields():
    config = TrainConfig(k=5, optimizer=OptimizerConfig(clip=2.0), recipe={"start": 0.5})
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert [TrainConfig(target_l0=l0).whole_k for l0 in (0.3, 2.4, 2.5, 3.5)] == [1, 2, 3, 4]
    with pytest.raises(InvalidValue, match="Did you mean 'tokens'"):
        TrainConfig.from_dict({"token": 3})


def test_recipes_name_settings_they_do_not_have(x):
    with pytest.raises(InvalidValue, match=r"no setting 'strat'.*start"):
        train(activations=x, config=quick(architecture="batchtopk", recipe={"strat": 0.5}), progress=False)
    with pytest.raises(InvalidValue, match="loss='tan'"):
        train(activations=x, config=quick(architecture="jumprelu", recipe={"loss": "tan"}), progress=False)


def test_jumprelu_trains_on_a_smooth_count_too(x):
    config = TrainConfig(architecture="jumprelu", recipe={"loss": "tanh"}, **SHORT)
    assert fvu(train(activations=x, config=config, progress=False), x[:1000]) < 0.6


def test_codes_through_a_bf16_shortlist_are_the_exact_selection(monkeypatch):
    module = sys.modules["hfsae.train.recipe"]
    recipe = RECIPES["topk"](Shape(96, 256, 96), TrainConfig(d_sae=256, k=6))
    x = torch.randn(512, 96, generator=torch.Generator().manual_seed(0))
    for codes in (lambda: recipe.strongest(x, 6), lambda: recipe.competing(x)):
        monkeypatch.setattr(module, "_scans_in_bf16", lambda W_enc: False)
        exact = dense_codes(codes(), len(x), 256)
        monkeypatch.setattr(module, "_scans_in_bf16", lambda W_enc: True)
        torch.testing.assert_close(dense_codes(codes(), len(x), 256), exact)


def test_competing_codes_are_the_largest_of_the_batch_and_their_gradients_dense_ones():
    recipe = RECIPES["batchtopk"](Shape(96, 64, 96), TrainConfig(d_sae=64, k=3)).double()
    x = torch.randn(100, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terms = recipe.sparse_terms(recipe.competing(x), x, x)
    terms.loss.backward()
    sparse = {name: parameter.grad.clone() for name, parameter in recipe.named_parameters()}
    recipe.zero_grad()
    z = torch.nn.functional.linear(x - recipe.b_dec, recipe.W_enc, recipe.b_enc).relu()
    f = z * (z >= z.flatten().topk(300).values[-1])
    dense = recipe.dense_terms(f, x, x)
    dense.loss.backward()
    assert torch.equal(terms.counts, dense.counts)
    for name, parameter in recipe.named_parameters():
        torch.testing.assert_close(sparse[name], parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


def dense_codes(codes, tokens, d_sae):
    of = torch.arange(tokens).repeat_interleave(
        torch.full((tokens,), codes.rows.shape[-1]) if codes.offsets is None else codes.offsets.diff()
    )
    flat = of * d_sae + codes.rows.flatten()
    return torch.zeros(tokens * d_sae).index_add(0, flat, codes.values.detach().flatten()).view(tokens, d_sae)


@pytest.mark.parametrize("tool", ["trackio", "wandb"])
def test_figures_are_logged_where_asked_for(tool, x, monkeypatch):
    seen = []
    stand_in = SimpleNamespace(
        init=lambda **options: seen.append(options["project"]),
        log=lambda figures, step: seen.append(step),
        finish=lambda: seen.append("finished"),
    )
    monkeypatch.setitem(sys.modules, tool, stand_in)
    train(activations=x, config=quick(), callbacks=[LogTo(tool, project="mine")], progress=False)
    assert seen == ["mine", *range(1, 17), "finished"]


def test_logging_names_what_is_missing_or_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackage, match="pip install wandb"):
        LogTo("wandb")
    with pytest.raises(InvalidValue, match="Did you mean 'wandb'"):
        LogTo("wandbb")


def test_progress_bar_shows_tokens_and_losses(x, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train(activations=x, config=quick())
    assert "fvu" in capsys.readouterr().err
