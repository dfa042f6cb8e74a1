"""What each edit does to features, against float64 written out by hand."""

import inspect
from functools import partial

import pytest
import torch
from attach_cases import dictionary, hooked, inputs_for, logits, tiny

from hfsae.attach import attach
from hfsae.dictionary import SAE
from hfsae.errors import HfsaeWarning, InvalidType, InvalidValue, Mismatch, OutOfRange, Unsupported
from hfsae.sae.config import SAEConfig

IDS = [3, 5, 8]


def by_hand(sae, change):
    """Return a plain hook in float64: x + (f' - f) W_dec."""

    def hook(x):
        f = sae.encode(x.float()).double()
        changed = change(f.clone())
        scale = 1.0
        if sae.config.normalize == "layer_norm":
            scale = x.double().std(-1, keepdim=True)
        if sae.config.normalize == "scale":
            scale = 1 / sae.config.scale
        return (x.double() + scale * ((changed - f) @ sae.W_dec.double())).to(x.dtype)

    return hook


def columns(value):
    def change(f):
        f[..., IDS] = value(f[..., IDS]).to(f)
        return f

    return change


CASES = {
    "ablate": (lambda a: a.ablate(IDS), columns(torch.zeros_like)),
    "mean": (lambda a: a.ablate(IDS, to="mean"), columns(lambda f: (torch.tensor(IDS) / 96).expand_as(f))),
    "set": (lambda a: a.set(IDS, [1.0, 2.0, 3.0]), columns(lambda f: torch.tensor([1.0, 2, 3]).expand_as(f))),
    "only": (lambda a: a.set(IDS, 2.0, only_if_active=True), columns(lambda f: torch.where(f != 0, 2.0, f))),
    "scale": (lambda a: a.scale(IDS, 3.0), columns(lambda f: 3 * f)),
    "clamp": (lambda a: a.clamp(IDS, min=0.1, max=0.2), columns(lambda f: f.clamp(0.1, 0.2))),
    "steer": (lambda a: a.steer(IDS, [1.0, 2.0, -1.0]), columns(lambda f: f + torch.tensor([1.0, 2, -1]))),
    "rows": (lambda a: a.set(IDS, torch.ones(2, 3)), columns(torch.ones_like)),
    "max": (lambda a: a.steer(IDS, 0.5, unit="max"), columns(lambda f: f + 0.5 * (1 + torch.tensor(IDS)))),
    "both": (lambda a: a.steer(IDS, 1.0) | a.scale(IDS, 2.0), columns(lambda f: 2 * (f + 1))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "kind",
    [
        ("standard", {}),
        ("topk", {}),
        ("topk", {"normalize": "layer_norm"}),
        ("jumprelu", {"normalize": "scale", "scale": 0.5}),
    ],
)
def test_an_edit_equals_float64_by_hand(case, kind):
    architecture, config = kind
    model, inputs, sae = tiny("llama"), inputs_for("llama"), dictionary(architecture, **config)
    make, change = CASES[case]
    with attach(model, 1, sae=sae) as att, make(att):
        edited = logits(model, inputs)
    expected = hooked(model, model.model.layers[1], by_hand(sae, change), inputs)
    torch.testing.assert_close(edited, expected, atol=2e-5, rtol=1e-5)


def test_inside_a_splice_the_changed_code_is_decoded():
    model, inputs, sae = tiny("llama"), inputs_for("llama"), dictionary("topk")

    def hook(x):
        f = sae.encode(x)
        f[..., IDS] = 2.0
        return sae.decode(f)

    expected = hooked(model, model.model.layers[1], hook, inputs)
    with attach(model, 1, sae=sae) as att:
        for edit in (att.set(IDS, 2.0) | att.splice(), att.splice() | att.set(IDS, 2.0)):
            with edit:
                torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=1e-5)


def test_vectors_steer_in_units_of_the_mean_norm():
    model, inputs, vector = tiny("llama"), inputs_for("llama"), torch.randn(32)
    block = model.model.layers[1]
    with attach(model, 1, sae=dictionary()) as att:
        with att.steer(vector, 2.0):
            plain = logits(model, inputs)
        with att.steer(vector, 0.5, unit="norm"):
            unit = logits(model, inputs)
        with att.steer(3, 0.5, unit="norm"):
            feature = logits(model, inputs)
        with att.steer(att.dictionary.W_dec[3].clone(), 0.5, unit="norm"):
            torch.testing.assert_close(logits(model, inputs), feature, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain, hooked(model, block, lambda x: x + 2 * vector, inputs), atol=1e-5, rtol=1e-5)
    unit_by_hand = hooked(model, block, lambda x: x + 0.5 * 4.0 * vector / vector.norm(), inputs)
    torch.testing.assert_close(unit, unit_by_hand, atol=1e-5, rtol=1e-5)


def test_a_conditional_edit_acts_where_the_other_feature_fires():
    model, inputs, sae = tiny("llama"), inputs_for("llama"), dictionary()

    def hook(x):
        fires = sae.encode(x)[..., [other]] != 0
        return x + fires * 4.0 * sae.W_dec[3]

    with attach(model, 1, sae=sae) as att:
        with att.record() as seen:
            model(**inputs)
        counts = (seen[0].to_dense() != 0).sum((0, 1))
        other = int(((counts > 0) & (counts < 20)).nonzero()[0])
        with att.steer(3, 4.0, when=other) as edit:
            y = logits(model, inputs)
        assert 0 < edit.tokens_met < 20
    torch.testing.assert_close(y, hooked(model, model.model.layers[1], hook, inputs), atol=1e-5, rtol=1e-5)


def test_a_patch_brings_features_of_another_run_to_the_same_positions():
    model, inputs = tiny("llama"), inputs_for("llama")
    other = {"input_ids": inputs["input_ids"].flip(1)[:1, :6]}
    with attach(model, 1, sae=dictionary()) as att:
        with att.record() as seen:
            model(**other)
        with att.record() as before:
            model(**inputs)
        edit = att.patch([3, 5], seen[0])
        values = []
        with edit:
            handle = att.mount.features.register_forward_hook(lambda _m, _a, f: values.append(f))
            model(**inputs)
            handle.remove()
        assert edit.tokens_met == 12
        patched = values[0][..., [3, 5]]
        torch.testing.assert_close(patched[:, :6], seen.at([3, 5]).expand(2, -1, -1))
        torch.testing.assert_close(patched[:, 6:], before.at([3, 5])[:, 6:])
        options = {"max_new_tokens": 4, "do_sample": False}
        with att.patch([3, 5], seen[0]):
            cached = model.generate(**inputs, **options)
        with att.patch([3, 5], seen[0]):
            assert torch.equal(model.generate(**inputs, **options, use_cache=False), cached)


def test_a_transcoder_reads_and_writes_at_its_two_sites():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    bare = logits(model, inputs)
    torch.manual_seed(0)
    sae = SAE(
        SAEConfig(
            architecture="standard",
            d_in=32,
            d_out=32,
            d_sae=96,
            skip=True,
            site="mlp_in",
            layer=1,
            write_site="mlp_out",
        )
    )
    sae.requires_grad_(False)
    sae.W_skip.normal_()
    att = attach(model, sae=sae)
    assert torch.equal(logits(model, inputs), bare)
    with att.splice():
        spliced = logits(model, inputs)
    with att.steer(3, 2.0):
        steered = logits(model, inputs)
    att.detach()
    mlp, read = model.transformer.h[1].mlp, []
    handle = mlp.register_forward_pre_hook(lambda _m, args: read.append(args[0]))
    torch.testing.assert_close(spliced, hooked(model, mlp, lambda _y: sae(read[-1]), inputs))
    torch.testing.assert_close(steered, hooked(model, mlp, lambda y: y + 2 * sae.W_dec[3], inputs))
    handle.remove()


def test_a_recording_holds_every_token_of_a_generation():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    with attach(model, 1, sae=dictionary("topk")) as att:
        with att.record() as seen:
            ids = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert [forward.shape[1] for forward in seen] == [10, 1, 1, 1]
        whole = att.top_features(ids[:, :-1])
        torch.testing.assert_close(seen.at(IDS), whole.sparse.at(IDS), atol=1e-5, rtol=1e-5)


def test_top_features_print_as_a_table():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    with attach(model, 1, sae=dictionary("topk")) as att:
        top = att.top_features({"input_ids": inputs["input_ids"][0].tolist()}, k=2)
        assert len(top) == 10
        assert all(len(token.features) <= 2 for token in top)
        assert str(top[0].features[0][0]) in repr(top).splitlines()[0]
        with pytest.raises(InvalidType, match=r"tokenizer\(text\)"):
            att.top_features(3)


WRONG = {
    "beyond": (lambda a: a.ablate(96), OutOfRange, "Feature 96"),
    "negative": (lambda a: a.ablate(-1), OutOfRange, "Feature -1"),
    "none": (lambda a: a.ablate([]), InvalidValue, "empty"),
    "twice": (lambda a: a.ablate([3, 3]), InvalidValue, "named twice"),
    "nan": (lambda a: a.steer(3, float("nan")), InvalidValue, "not finite"),
    "infinite": (lambda a: a.set(3, float("inf")), InvalidValue, "not finite"),
    "overflowing": (lambda a: a.steer(3, 1e39), InvalidValue, "not finite as a float32"),
    "nowhere": (lambda a: a.steer(torch.zeros(32), 1.0, unit="norm"), InvalidValue, "The vector points nowhere"),
    "text": (lambda a: a.scale(3, "2"), InvalidType, "A number, list or tensor"),
    "many": (lambda a: a.set([3, 4], [1.0]), InvalidValue, "1 values for 2 features"),
    "shape": (lambda a: a.set([3, 4], torch.ones(2, 3)), InvalidValue, r"\[rows, 2\]"),
    "unit": (lambda a: a.steer(3, 1.0, unit="norms"), InvalidValue, "Did you mean 'norm'"),
    "to": (lambda a: a.ablate(3, to="median"), InvalidValue, "Known: mean, zero"),
    "clamp": (lambda a: a.clamp(3), InvalidValue, "neither min nor max"),
    "crossed": (lambda a: a.clamp(3, min=2.0, max=1.0), InvalidValue, "is above"),
    "vector": (lambda a: a.steer(torch.ones(31), 1.0), InvalidValue, r"\[32\]"),
    "phase": (lambda a: a.ablate(3, phase="later"), InvalidValue, "phase='later'"),
    "selector": (lambda a: a.ablate(3, position=3), InvalidType, "Did you mean 'positions'"),
    "positions": (lambda a: a.ablate(3, positions=[0.5]), InvalidType, "positions has 0.5"),
    "step": (lambda a: a.ablate(3, positions=slice(0, 8, 2)), InvalidValue, "step"),
    "fn": (lambda a: a.replace(3), InvalidType, "function"),
    "source": (lambda a: a.patch(3, torch.zeros(1, 4, 2)), InvalidValue, "source"),
}


class Unchecked:
    """An attachment whose methods get what a user passes, without the type checks of the test run."""

    def __init__(self, att):
        self.att = att

    def __getattr__(self, name):
        return partial(inspect.unwrap(getattr(type(self.att), name)), self.att)


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_edit_is_refused_before_anything_changes(case):
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    bare = logits(model, inputs)
    make, error, message = WRONG[case]
    with attach(model, 1, sae=dictionary()) as att:
        with pytest.raises(error, match=message):
            make(Unchecked(att))
        assert torch.equal(logits(model, inputs), bare)


def test_a_feature_without_direction_has_no_unit_of_norm():
    sae = dictionary()
    sae.W_dec[3] = 0
    with attach(tiny("gpt2"), 1, sae=sae) as att, pytest.raises(InvalidValue, match="A feature points nowhere"):
        att.steer([2, 3], 1.0, unit="norm")


def test_units_need_statistics_and_detached_attachments_are_refused():
    model, sae = tiny("gpt2"), dictionary()
    sae.statistics = None
    att = attach(model, 1, sae=sae)
    for make in (lambda: att.steer(3, 1.0, unit="max"), lambda: att.ablate(3, to="mean")):
        with pytest.raises(InvalidValue, match="needs the statistics"):
            make()
    edit = att.ablate(3)
    att.detach()
    with pytest.raises(InvalidValue, match="detached"):
        att.ablate(3)
    with pytest.raises(InvalidValue, match="detached"):
        edit.__enter__()


def test_a_dictionary_of_another_place_is_refused():
    model = tiny("gpt2")
    with pytest.raises(Mismatch, match="width 16"):
        attach(model, 1, sae=dictionary(d_in=16), force=True)
    other = dictionary(site="resid_post", layer=2, base_model="someone/else")
    with pytest.raises(Mismatch, match="force=True"):
        attach(model, 1, sae=other)
    attach(model, 1, sae=other, force=True).detach()
    with attach(model, 0, "resid_post", sae=dictionary(site="resid_pre", layer=1)):
        pass
    model.config.name_or_path = "me/mine"
    with pytest.warns(HfsaeWarning, match="was trained on 'someone/else'"):
        attach(model, sae=other).detach()
    with pytest.raises(InvalidValue, match="error='kept'"):
        attach(model, 1, sae=other, error="kept")
    with pytest.raises(LookupError, match="No dictionary is registered"):
        attach(model, 1)


def test_selectors_need_rows_and_positions_to_tell_apart():
    model, inputs = tiny("vit"), inputs_for("vit")
    with attach(model, 1, sae=dictionary()) as att, att.ablate(range(9), positions=[0]) as edit:
        logits(model, inputs)
        assert edit.tokens_met == 2
    flat = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
    with attach(flat, module="0", sae=dictionary()) as att:
        with pytest.raises(Unsupported, match=r"\[batch, seq, width\]"), att.ablate(3, positions=[0]):
            flat(torch.randn(4, 32))
        with att.steer(3, 1.0) as edit:
            flat(torch.randn(4, 32))
        assert edit.tokens_changed == 4


def test_edits_and_attachments_read_as_the_calls_that_made_them(tiny_gpt2):
    with attach(tiny_gpt2, 1, sae=dictionary("jumprelu")) as att:
        both = att.set(3, 2.0, only_if_active=True, positions=0) | att.ablate([1, 2])
        assert repr(both) == "set(3, 2.0, only_if_active=True, positions=0) | ablate([1, 2])"
        assert repr(att.steer(torch.ones(32), 1.5, phase="prompt")) == "steer(vector[32], 1.5, phase='prompt')"
        assert repr(att).startswith("Attachment('sae' at transformer.h.1: SAE(jumprelu")
    assert repr(att).endswith("no longer live)")
