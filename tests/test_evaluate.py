"""`evaluate` equals a slow computation of every number, and its controls give the answers that are known."""

import copy
import json
import math
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from hfsae.attach import attach
from hfsae.controls import identity_dictionary, mean_dictionary, pca_dictionary, zero_dictionary
from hfsae.data.tokens import TokenBatch
from hfsae.dictionary import SAE
from hfsae.errors import InvalidType, InvalidValue
from hfsae.evaluate import Evaluation, evaluate
from hfsae.sae.config import SAEConfig
from hfsae.sites import resolve

BOS, EOS = 1, 2
CAUSAL_SITES = [(1, "resid_post"), (2, "resid_pre"), (-1, "resid_post")]


def make_dictionary(width: int = 32, **fields: object) -> SAE:
    torch.manual_seed(3)
    options = {"architecture": "topk", "d_in": width, "d_sae": 64, "k": 6} | fields
    dictionary = SAE(SAEConfig(**options))
    for parameter in dictionary.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return dictionary


@pytest.fixture
def ragged() -> dict[str, torch.Tensor]:
    """Seven rows of 1 to 14 tokens, padded on the right, with special tokens at their ends and inside."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 96, (7, 14), generator=generator)
    mask = torch.arange(14) < torch.tensor([14, 9, 1, 14, 5, 12, 2])[:, None]
    ids[:, 0], ids[3, 6], ids[1, 8] = BOS, BOS, EOS
    ids[2, 0] = 7
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


@contextmanager
def plain_hook(module: nn.Module, io: str, change: Callable[[torch.Tensor], torch.Tensor]):
    def after(_module: nn.Module, _args: object, output: object) -> object:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    def before(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> object:
        return (change(args[0]), *args[1:])

    handle = module.register_forward_hook(after) if io == "output" else module.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def slow_evaluation(
    model: nn.Module, layer: int, site: str, dictionary: SAE, rows: list[list[int]]
) -> dict[str, float]:
    """Every number token by token in float64, row by row without padding, with hooks of plain torch."""
    model, dictionary = copy.deepcopy(model).double(), copy.deepcopy(dictionary).double()
    point = resolve(model, layer, site)
    chosen = [torch.tensor([token not in (0, BOS, EOS) for token in row]) for row in rows]

    def run(row: list[int], change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        with torch.no_grad(), plain_hook(point.module, point.io, change):
            return model(torch.tensor([row])).logits[0].log_softmax(-1)

    xs: list[torch.Tensor] = []
    clean = [run(row, lambda x: xs.append(x[0]) or x) for row in rows]
    with torch.no_grad():
        fs = [slow_encode(dictionary, x) for x in xs]
        x_hats = [f @ dictionary.W_dec + dictionary.b_dec for f in fs]
    tokens = [(x[t], x_hats[i][t], fs[i][t]) for i, x in enumerate(xs) for t in range(len(x)) if chosen[i][t]]
    mean = sum(x for x, _, _ in tokens) / len(tokens)

    def run_with(values: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        return [run(row, lambda x, i=i: torch.where(chosen[i][:, None], values(i), x)) for i, row in enumerate(rows)]

    runs = {
        "clean": clean,
        "spliced": run_with(lambda i: x_hats[i]),
        "zero": run_with(lambda i: torch.zeros(32).double()),
        "mean": run_with(lambda i: mean),
    }
    return slow_reconstruction(tokens, mean) | slow_losses(runs, rows)


def slow_encode(dictionary: SAE, x: torch.Tensor) -> torch.Tensor:
    z = (x - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc
    f = torch.zeros_like(z)
    for token in range(len(z)):
        for feature in z[token].argsort(descending=True)[: dictionary.config.k]:
            f[token, feature] = max(float(z[token, feature]), 0.0)
    return f


def slow_reconstruction(tokens: list[tuple[torch.Tensor, ...]], mean: torch.Tensor) -> dict[str, object]:
    def total(of: Callable[..., torch.Tensor]) -> float:
        return float(sum(of(*token) for token in tokens))

    error = total(lambda x, x_hat, f: (x - x_hat).square().sum())
    density = sum((f != 0).double() for _, _, f in tokens) / len(tokens)
    values = {
        "fvu": error / total(lambda x, x_hat, f: (x - mean).square().sum()),
        "mse": error / len(tokens) / len(mean),
        "cosine": total(lambda x, x_hat, f: x @ x_hat / (x.norm() * x_hat.norm())) / len(tokens),
        "l2_ratio": total(lambda x, x_hat, f: x_hat.norm()) / total(lambda x, x_hat, f: x.norm()),
        "relative_bias": total(lambda x, x_hat, f: x_hat @ x_hat) / total(lambda x, x_hat, f: x @ x_hat),
        "l0": total(lambda x, x_hat, f: (f != 0).sum()) / len(tokens),
        "dead_fraction": float((density == 0).double().mean()),
        "l0_histogram": torch.bincount(torch.stack([(f != 0).sum() for _, _, f in tokens])).tolist(),
        "tokens_spliced": len(tokens),
    }
    return values | {"explained_variance": 1 - values["fvu"], "density": density.tolist()}


def slow_losses(runs: dict[str, list[torch.Tensor]], rows: list[list[int]]) -> dict[str, float]:
    ce = {
        name: [-float(log_p[i][t, row[t + 1]]) for i, row in enumerate(rows) for t in range(len(row) - 1)]
        for name, log_p in runs.items()
    }
    kl = [
        float((p[t].exp() * (p[t] - q[t])).sum())
        for p, q in zip(runs["clean"], runs["spliced"], strict=True)
        for t in range(len(p))
    ]
    means = {f"ce_{name}": sum(losses) / len(losses) for name, losses in ce.items()}
    return means | {
        "kl": sum(kl) / len(kl),
        "recovered_zero": (means["ce_zero"] - means["ce_spliced"]) / (means["ce_zero"] - means["ce_clean"]),
        "recovered_mean": (means["ce_mean"] - means["ce_spliced"]) / (means["ce_mean"] - means["ce_clean"]),
        "tokens_scored": len(ce["clean"]),
        "tokens_valid": len(kl),
    }


def assert_same(
    found: Evaluation | dict[str, object], expected: Evaluation | dict[str, object], tolerance: float
) -> None:
    found, expected = (e.to_dict() if isinstance(e, Evaluation) else e for e in (found, expected))
    for name, value in expected.items():
        if name.startswith("recovered"):  # rounding counts as it does in the losses that it is a ratio of
            lost = abs(expected[name.replace("recovered", "ce")] - expected["ce_clean"])
            assert found[name] == pytest.approx(value, abs=tolerance * (1 + abs(value)) * 4 / lost), name
        elif isinstance(value, str | None):
            assert found[name] == value, name
        elif name not in ("documents", "documents_empty", "documents_cut"):
            assert found[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


def unpadded(data: dict[str, torch.Tensor]) -> list[list[int]]:
    return [
        [int(token) for token, kept in zip(ids, mask, strict=True) if kept]
        for ids, mask in zip(data["input_ids"], data["attention_mask"], strict=True)
    ]


@pytest.mark.parametrize(("layer", "site"), CAUSAL_SITES)
def test_every_number_equals_the_slow_computation_on_every_family(tiny_model, ragged, layer, site):
    dictionary = make_dictionary()
    attachment = attach(tiny_model, layer, site, sae=dictionary)
    found = evaluate(attachment, ragged, batch_size=4)
    assert_same(found, slow_evaluation(tiny_model, layer, site, dictionary, unpadded(ragged)), 1e-5)


def test_rows_that_an_ablation_makes_equal_are_still_counted(tiny_gpt2):
    ids = torch.randint(3, 96, (6, 10), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = BOS
    ids[4, 5] = EOS
    dictionary = make_dictionary()
    found = evaluate(attach(tiny_gpt2, 1, sae=dictionary), ids, batch_size=6)
    assert_same(found, slow_evaluation(tiny_gpt2, 1, "resid_post", dictionary, ids.tolist()), 1e-5)


def test_rows_are_not_shared_where_token_ids_reach_later_blocks(tiny_gpt2):
    class Remembering(nn.Module):
        """A block that adds the embeddings of the tokens again."""

        def __init__(self, block: nn.Module, embeddings: nn.Module) -> None:
            super().__init__()
            self.block, vars(self)["embeddings"] = block, embeddings
            embeddings.register_forward_hook(lambda _module, _args, output: vars(self).update(last=output))

        def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            last = self.last[: len(hidden_states)]
            return self.block(hidden_states, *args, **kwargs) + last

    tiny_gpt2.transformer.h[2] = Remembering(tiny_gpt2.transformer.h[2], tiny_gpt2.transformer.wte)
    ids = torch.randint(3, 96, (5, 8), generator=torch.Generator().manual_seed(2))
    attachment = attach(tiny_gpt2, sae=make_dictionary(), module="transformer.h.1")
    assert_same(evaluate(attachment, ids, batch_size=5), evaluate(attachment, ids, batch_size=1), 1e-5)


@pytest.mark.parametrize("module", ["transformer.h.1.mlp", "transformer.h.0.ln_2", "transformer.wte"])
def test_sites_inside_and_below_blocks_give_the_same_in_any_batches(tiny_gpt2, ragged, module):
    attachment = attach(tiny_gpt2, module=module, sae=make_dictionary())
    one, other = (evaluate(attachment, ragged, batch_size=size) for size in (1, 7))
    assert_same(one, other, 1e-5)
    assert 0 < one.kl < math.inf


def test_numbers_do_not_change_with_batch_size_padding_side_or_order(tiny_llama, ragged):
    attachment = attach(tiny_llama, 1, sae=make_dictionary())
    expected = evaluate(attachment, ragged, batch_size=7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    shuffled = {name: value[order] for name, value in ragged.items()}
    left = {"input_ids": torch.zeros(7, 16, dtype=torch.long), "attention_mask": torch.zeros(7, 16, dtype=torch.long)}
    for i, row in enumerate(unpadded(ragged)):
        left["input_ids"][i, 16 - len(row) :], left["attention_mask"][i, 16 - len(row) :] = torch.tensor(row), 1
    for data, batch_size in ((ragged, 1), (ragged, 3), (shuffled, 4), (left, 7), (unpadded(ragged), 2)):
        assert_same(evaluate(attachment, data, batch_size=batch_size), expected, 2e-6)


@pytest.mark.parametrize("site", ["resid_post", "resid_pre"])
def test_the_identity_costs_nothing(tiny_model, ragged, site):
    found = evaluate(attach(tiny_model, 1, site, sae=identity_dictionary(32)), ragged)
    assert (found.recovered_zero, found.recovered_mean, found.kl, found.fvu) == (1.0, 1.0, 0.0, 0.0)
    assert found.cosine == pytest.approx(1.0)
    assert found.l0 == 32


def test_zero_recovers_nothing_of_zero_ablation(tiny_model, ragged):
    found = evaluate(attach(tiny_model, 1, sae=zero_dictionary(32)), ragged)
    assert found.recovered_zero == pytest.approx(0.0, abs=1e-6)
    assert (found.cosine, found.l0, found.l2_ratio, found.dead_fraction) == (0.0, 0.0, 0.0, 1.0)
    assert math.isnan(found.relative_bias)
    assert found.to_dict()["relative_bias"] is None


def test_the_mean_recovers_nothing_of_mean_ablation(tiny_model, ragged):
    seen: list[torch.Tensor] = []
    block = resolve(tiny_model, 1).module
    with torch.no_grad(), plain_hook(block, "output", lambda x: seen.append(x) or x):
        tiny_model(**ragged)
    x = seen[0][ragged["attention_mask"].bool() & (ragged["input_ids"] > EOS)]
    found = evaluate(attach(tiny_model, 1, sae=mean_dictionary(x)), ragged)
    assert found.recovered_mean == pytest.approx(0.0, abs=1e-5)
    assert found.fvu == pytest.approx(1.0, abs=1e-6)


def test_principal_components_explain_what_their_variance_says(tiny_gpt2, ragged):
    seen: list[torch.Tensor] = []
    with torch.no_grad(), plain_hook(tiny_gpt2.transformer.h[1], "output", lambda x: seen.append(x) or x):
        tiny_gpt2(**ragged)
    x = seen[0][ragged["attention_mask"].bool() & (ragged["input_ids"] > EOS)]
    variance = torch.linalg.svdvals(x - x.mean(0)).square()
    for components in (1, 8, 32):
        with attach(tiny_gpt2, 1, sae=pca_dictionary(x, components)) as attachment:
            found = evaluate(attachment, ragged)
        assert found.fvu == pytest.approx(float(variance[components:].sum() / variance.sum()), abs=1e-5)
        assert found.l0 == pytest.approx(components)


def test_the_model_is_left_as_it_was(tiny_gpt2, ragged):
    tiny_gpt2.train()
    tiny_gpt2.transformer.h[0].eval()
    before = [(module.training, dict(vars(module)), len(module._forward_hooks)) for module in tiny_gpt2.modules()]
    attachment = attach(tiny_gpt2, 1, sae=make_dictionary())
    evaluate(attachment, ragged)
    attachment.detach()
    after = [(module.training, dict(vars(module)), len(module._forward_hooks)) for module in tiny_gpt2.modules()]
    for (training, attributes, hooks), (training_now, attributes_now, hooks_now) in zip(before, after, strict=True):
        assert (training, attributes.keys(), hooks) == (training_now, attributes_now.keys(), hooks_now)
    assert "forward" not in vars(tiny_gpt2.transformer.h[0])


def test_dropout_and_autocast_are_off(tiny_gpt2, ragged):
    attachment = attach(tiny_gpt2, 1, sae=make_dictionary())
    expected = evaluate(attachment, ragged)
    tiny_gpt2.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(evaluate(attachment, ragged), expected, 1e-9)


def test_the_policy_comes_from_the_dictionary_and_can_be_changed(tiny_gpt2, ragged):
    plain = attach(tiny_gpt2, 1, sae=make_dictionary(exclude_special_tokens=False), name="plain")
    own = evaluate(plain, ragged)
    assert own.tokens_spliced == own.tokens_valid == 57
    changed = evaluate(plain, ragged, exclude_special_tokens=True)
    assert changed.tokens_spliced == 57 - 8
    assert evaluate(plain, ragged, exclude_first_position=True).tokens_spliced == 57 - 7


def test_a_norm_outlier_is_not_spliced(tiny_gpt2):
    ids = torch.randint(4, 96, (4, 9), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = 3
    tiny_gpt2.transformer.wte.weight.data[3] *= 1e4
    found = evaluate(attach(tiny_gpt2, 0, sae=make_dictionary(norm_outlier=50.0)), ids)
    assert found.tokens_spliced == 4 * 8


def test_a_transcoder_is_measured_where_it_writes(tiny_gpt2, ragged):
    config = SAEConfig(
        architecture="topk", d_in=32, d_sae=64, k=6, d_out=32, b_pre="none", module="transformer.h.1.ln_2",
        write_module="transformer.h.1.mlp",
    )  # fmt: skip
    dictionary = SAE(config).requires_grad_(False)
    found = evaluate(attach(tiny_gpt2, module="transformer.h.1.ln_2", sae=dictionary), ragged)
    seen: dict[str, torch.Tensor] = {}
    block = tiny_gpt2.transformer.h[1]
    with (
        torch.no_grad(),
        plain_hook(block.ln_2, "output", lambda x: seen.update(x=x) or x),
        plain_hook(block.mlp, "output", lambda y: seen.update(y=y) or y),
    ):
        tiny_gpt2(**ragged)
    mask = ragged["attention_mask"].bool() & (ragged["input_ids"] > EOS)
    y, y_hat = seen["y"][mask], dictionary(seen["x"][mask])
    assert found.fvu == pytest.approx(float((y - y_hat).square().sum() / (y - y.mean(0)).square().sum()), rel=1e-5)
    with (
        torch.no_grad(),
        plain_hook(block.mlp, "output", lambda y: torch.where(mask[..., None], dictionary(seen["x"]), y)),
    ):
        logits = tiny_gpt2(**ragged).logits
    labels = ragged["input_ids"].masked_fill(ragged["attention_mask"] == 0, -100)[:, 1:]
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
    assert found.ce_spliced == pytest.approx(float(expected), rel=1e-5)


def test_reconstruction_alone_needs_no_loss_and_no_head(tiny_gpt2, ragged):
    full = evaluate(attach(tiny_gpt2, 1, sae=make_dictionary()), ragged)
    body = tiny_gpt2.transformer
    body.h[2].forward = None  # a run beyond the site would fail
    found = evaluate(attach(body, 1, sae=make_dictionary(), name="alone"), ragged, metrics="reconstruction")
    for name in ("fvu", "mse", "l0", "cosine", "tokens_spliced"):
        assert getattr(found, name) == pytest.approx(getattr(full, name), rel=1e-6)
    assert found.loss is found.ce_clean is found.kl is None
    assert "CE" not in str(found)


def test_a_loss_of_the_callers_takes_the_place_of_cross_entropy(tiny_gpt2, ragged):
    def per_prediction(outputs: object, batch: TokenBatch) -> torch.Tensor:
        losses = nn.functional.cross_entropy(outputs.logits[:, :-1].mT, batch.input_ids[:, 1:], reduction="none")
        return losses[batch.valid[:, 1:]]

    attachment = attach(tiny_gpt2, 1, sae=make_dictionary())
    expected = evaluate(attachment, ragged)
    found = evaluate(attachment, ragged, loss_fn=per_prediction, batch_size=3)
    assert (found.loss, found.kl) == ("loss_fn", None)
    for name in ("ce_clean", "ce_spliced", "ce_zero", "ce_mean", "recovered_zero", "recovered_mean"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5)
    mean_of_rows = evaluate(attachment, ragged, loss_fn=lambda outputs, batch: batch.valid.float().mean())
    assert mean_of_rows.ce_clean == pytest.approx(57 / 98)
    with pytest.raises(InvalidType, match="loss_fn returned a float"):
        evaluate(attachment, ragged, loss_fn=lambda outputs, batch: 1.0)


def test_the_dictionary_may_fire_nowhere(tiny_gpt2, ragged):
    dictionary = make_dictionary()
    dictionary.b_enc.data.fill_(-1e6)
    found = evaluate(attach(tiny_gpt2, 1, sae=dictionary), ragged)
    assert (found.l0, found.dead_fraction) == (0.0, 1.0)
    assert found.plot().axes


def test_max_tokens_and_context_are_kept(tiny_gpt2, ragged):
    attachment = attach(tiny_gpt2, 1, sae=make_dictionary())
    assert evaluate(attachment, ragged, max_tokens=20).tokens_valid == 20
    cut = evaluate(attachment, ragged, context=5)
    assert (cut.documents, cut.documents_cut, cut.tokens_valid) == (7, 4, 57)


def test_the_result_prints_saves_and_draws(tiny_gpt2, ragged, tmp_path):
    found = evaluate(attach(tiny_gpt2, 1, sae=make_dictionary()), ragged)
    table = str(found)
    for part in ("clean ", "spliced ", "zero ", "mean ", "loss recovered", "FVU", "57 valid, 49 spliced, 50 scored"):
        assert part in table
    found.save(tmp_path)
    loaded = json.loads((tmp_path / "eval.json").read_text())
    assert loaded == found.to_dict()
    assert loaded["fvu"] == found.fvu
    assert len(loaded["density"]) == 64
    found.plot().savefig(tmp_path / "evaluation.png")
    assert (tmp_path / "evaluation.png").stat().st_size > 1000


def encoder() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    return BertForMaskedLM(config).eval()


def test_a_model_without_next_token_loss_is_refused_until_told_how(ragged):
    attachment = attach(encoder(), 0, sae=make_dictionary())
    with pytest.raises(
        InvalidValue, match=r"BertForMaskedLM has no next-token loss.*loss_fn=.*metrics='reconstruction'"
    ):
        evaluate(attachment, ragged)
    assert evaluate(attachment, ragged, metrics="reconstruction").tokens_valid == 57
    with_loss = evaluate(attachment, ragged, loss_fn=lambda outputs, batch: outputs.logits.square().mean())
    assert with_loss.ce_spliced != with_loss.ce_clean


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "hold no tokens"),
        ([[5], [6]], {}, "every row has a single token.*metrics='reconstruction'"),
        ([[BOS, EOS], [EOS, BOS]], {}, "None of the 4 tokens is spliced"),
        ([[5, 96]], {}, "Token id 96 is out of range.*0 to 95"),
        (
            [[5, 6]],
            {"metrics": "reconstructions"},
            r"metrics='reconstructions' is unknown\. Did you mean 'reconstruction'",
        ),
        ([[5, 6]], {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_data_is_one_clear_error_and_leaves_the_model_alone(tiny_gpt2, ids, data, options, message):
    before = tiny_gpt2(ids).logits
    attachment = attach(tiny_gpt2, 1, sae=make_dictionary())
    with pytest.raises(InvalidValue, match=message):
        evaluate(attachment, data, **options)
    assert torch.equal(tiny_gpt2(ids).logits, before)


def test_texts_without_a_tokenizer_are_refused(tiny_gpt2):
    with pytest.raises(InvalidType, match="there is no tokenizer"):
        evaluate(attach(tiny_gpt2, 1, sae=make_dictionary()), ["some text"])


def test_activations_that_are_not_finite_are_named_by_place_and_batch(tiny_gpt2, ragged):
    tiny_gpt2.transformer.wte.weight.data[int(ragged["input_ids"][5, 3])] = math.nan
    attachment = attach(tiny_gpt2, 1, sae=make_dictionary())
    with pytest.raises(InvalidValue, match=r"activations at resid_post\.layer_1 are not finite in batch 2"):
        evaluate(attachment, ragged, batch_size=2)
