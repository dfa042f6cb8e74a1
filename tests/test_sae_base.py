"""Laws of every architecture: sparse is dense is float64; decode of encode is forward; a slice is a column."""

import copy

import pytest
import torch
from dictionaries import D_IN, D_OUT, D_SAE, K, activations, as_in_production, random_sae, reference
from torch import nn

from hfsae.dictionary import SAE
from hfsae.errors import InvalidType, InvalidValue, OutOfRange, Unsupported
from hfsae.sae.architectures import ARCHITECTURES
from hfsae.sae.config import SAEConfig
from hfsae.sae.sparse import SparseFeatures

FORMS = {
    "tied": {},
    "own": {"b_pre": "own"},
    "none": {"b_pre": "none"},
    "scale": {"normalize": "scale", "scale": 0.37},
    "layer_norm": {"normalize": "layer_norm"},
    "transcoder": {"b_pre": "none", "d_out": D_OUT},
    "skip": {"b_pre": "own", "d_out": D_OUT, "skip": True},
    "scaled transcoder": {"b_pre": "none", "d_out": D_OUT, "normalize": "scale", "scale": 0.37},
}
CASES = [
    (name, form)
    for name, row in ARCHITECTURES.items()
    for form in FORMS
    if row.transcodes or "d_out" not in FORMS[form]
]
every_case = pytest.mark.parametrize(("architecture", "form"), CASES)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture
def x():
    return activations(3, 7, D_IN)


@every_case
def test_encode_and_forward_equal_the_float64_reference(architecture, form, x):
    sae = random_sae(architecture, **FORMS[form])
    f, x_hat = reference(sae, x)
    assert f.count_nonzero() > 0
    torch.testing.assert_close(sae.encode(x).double(), f, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x).double(), x_hat, atol=2e-5, rtol=1e-5)


@every_case
def test_sparse_codes_are_the_dense_ones(architecture, form, x):
    sae = random_sae(architecture, **FORMS[form])
    f, sparse = sae.encode(x), sae.encode_sparse(x)
    assert sparse.shape == f.shape
    torch.testing.assert_close(sparse.to_dense(), f, atol=1e-5, rtol=1e-5)
    assert torch.equal(sparse.l0(), (f != 0).sum(-1))
    torch.testing.assert_close(sparse.at([4, 0, 4]), f[..., [4, 0, 4]], atol=1e-5, rtol=1e-5)


@every_case
def test_decode_of_encode_is_forward(architecture, form, x):
    sae = random_sae(architecture, **FORMS[form])
    raw = x if sae.config.skip else None
    torch.testing.assert_close(sae.decode(sae.encode(x), x=raw), sae(x), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(sae.decode(sae.encode_sparse(x), x=raw), sae(x), atol=2e-5, rtol=1e-5)


@every_case
def test_encode_of_named_features_is_their_columns(architecture, form, x):
    sae = random_sae(architecture, **FORMS[form])
    wanted = [31, 2, D_SAE - 1]
    torch.testing.assert_close(sae.encode(x, features=wanted), sae.encode(x)[..., wanted], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.encode(x, features=torch.tensor(wanted)), sae.encode(x, features=wanted))
    assert sae.encode(x, features=5).shape == (3, 7, 1)


@every_architecture
@pytest.mark.parametrize("shape", [(D_IN,), (1, D_IN), (0, D_IN), (2, 0, D_IN), (2, 3, 4, D_IN)], ids=str)
def test_any_leading_dimensions_are_kept(architecture, shape):
    sae = random_sae(architecture)
    x = activations(*shape)
    assert sae(x).shape == shape
    assert sae.encode(x).shape == (*shape[:-1], D_SAE)
    sparse = sae.encode_sparse(x)
    assert sparse.to_dense().shape == (*shape[:-1], D_SAE)
    assert sae.decode(sparse).shape == shape
    assert sae.encode(x, features=[3]).shape == (*shape[:-1], 1)


@every_case
def test_gradients_equal_those_of_the_float64_reference(architecture, form, x):
    sae = random_sae(architecture, **FORMS[form]).double()
    for route in (sae, lambda x: sae.decode(sae.encode(x), x=x), lambda x: sae.decode(sae.encode_sparse(x), x=x)):
        sae.zero_grad()
        mine = x.double().requires_grad_()
        (route(mine) ** 2).sum().backward()
        got = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None} | {"x": mine.grad}
        want = _reference_gradients(sae, x)
        assert set(want) - {"threshold"} == set(got) - {"threshold"}
        for name in set(got) - {"threshold"}:
            torch.testing.assert_close(got[name], want[name], atol=1e-8, rtol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def _reference_gradients(sae, x):
    twin = copy.deepcopy(sae)
    twin.zero_grad()
    mine = x.double().requires_grad_()
    parameters = dict(twin.named_parameters())
    with pytest.MonkeyPatch.context() as patch:  # the reference detaches, to be usable under a graph elsewhere
        patch.setattr(torch.Tensor, "detach", lambda self: self)
        (reference(twin, mine)[1] ** 2).sum().backward()
    return {name: p.grad for name, p in parameters.items() if p.grad is not None} | {"x": mine.grad}


@every_architecture
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_results_come_back_in_the_dtype_of_x(architecture, dtype, x):
    sae = random_sae(architecture)
    assert sae.encode(x.to(dtype)).dtype == sae(x.to(dtype)).dtype == dtype
    assert sae.encode_sparse(x.to(dtype)).values.dtype == dtype
    assert sae.decode(sae.encode_sparse(x.to(dtype))).dtype == dtype


@every_architecture
def test_autocast_changes_nothing(architecture, x):
    sae = random_sae(architecture)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sae(x), sae.encode(x), sae.decode(sae.encode(x)), sae.preactivations(x)
    outside = sae(x), sae.encode(x), sae.decode(sae.encode(x)), sae.preactivations(x)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@every_architecture
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_dictionary_of_lower_precision_computes_near_its_own_reference(architecture, dtype, x):
    sae = random_sae(architecture).to(dtype)
    f, x_hat = reference(sae, x.to(dtype))
    errors = (sae(x.to(dtype)).double() - x_hat).norm(dim=-1) / x_hat.norm(dim=-1)
    assert errors.median() < 0.03  # a token whose features nearly tie may take another one, and be far off
    assert ((sae.encode(x.to(dtype)) != 0) == (f != 0)).float().mean() > 0.97


@pytest.mark.parametrize("architecture", [n for n, row in ARCHITECTURES.items() if row.has_threshold])
def test_thresholds_stay_in_fp32_whatever_the_dictionary_is_cast_to(architecture):
    sae = random_sae(architecture)
    before = sae.threshold.detach().clone()
    sae.to(torch.bfloat16).half().float()
    assert sae.threshold.dtype == torch.float32
    assert torch.equal(sae.threshold, before)


def test_the_threshold_is_compared_strictly(x):
    sae = random_sae("jumprelu", b_pre="none")
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.fill_(1.5)
        sae.threshold.fill_(1.5)
        assert sae.encode(x).count_nonzero() == sae.encode_sparse(x).values.numel() == 0
        sae.threshold[3] = torch.nextafter(torch.tensor(1.5), torch.tensor(0.0))
        assert sae.encode(x)[0, 0].nonzero().item() == 3
        assert sae.encode_sparse(x)[0, 0][0].tolist() == [3]


def test_fewer_than_k_fire_when_fewer_are_above_zero(x):
    sae = random_sae("topk", k=40)
    with torch.no_grad():
        sae.b_enc.sub_(2)
    l0 = sae.encode_sparse(x).l0()
    assert l0.max() < 40
    assert (sae.encode_sparse(x).values >= 0).all()


@every_architecture
def test_a_nan_is_never_silent(architecture, x):
    sae = random_sae(architecture)
    x[1, 2, 3] = float("nan")
    for out in (sae(x), sae.decode(sae.encode(x)), sae.decode(sae.encode_sparse(x))):
        assert out[1, 2].isnan().all()
        assert out[0].isfinite().all()


@every_architecture
def test_codes_follow_every_change_of_the_weights(architecture, x):
    sae, other = random_sae(architecture), random_sae(architecture, seed=9)
    sae(x)
    sae.load_state_dict(other.state_dict())
    assert torch.equal(sae(x), other(x))
    sae.b_dec.data.add_(1)
    assert not torch.equal(sae(x), other(x))


@every_architecture
def test_tensors_without_numbers_are_answered_with_shapes(architecture, x):
    from torch._subclasses import FakeTensorMode

    sae = random_sae(architecture)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for abstract in (x.to("meta"), mode.from_tensor(x)):
            assert sae.encode(abstract).shape == (3, 7, D_SAE)
            assert sae(abstract).shape == x.shape
            assert sae.encode_sparse(abstract).shape == (3, 7, D_SAE)
            assert sae.decode(sae.encode(abstract)).shape == x.shape
            assert sae.encode(abstract, features=[1]).shape == (3, 7, 1)
    assert sae.W_enc.device.type == "cpu"


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
@torch.no_grad()
def test_long_inputs_cross_tiles_without_a_seam(architecture, monkeypatch):
    from hfsae.sae import coding, kernels

    sae = random_sae(architecture, d_sae=1500)
    x = activations(333, D_IN)
    whole = sae(x), sae.encode_sparse(x).to_dense()
    monkeypatch.setattr(kernels, "_TOKENS_PER_TILE", 50)
    monkeypatch.setattr(kernels, "_TILE_BYTES", 1)
    monkeypatch.setattr(coding, "_TOKENS_AT_ONCE", 70)
    for a, b in zip(whole, (sae(x), sae.encode_sparse(x).to_dense()), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6 * a.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(2, D_IN + 1), InvalidValue, r"x is \[2, 13\].*reads activations \[\.\.\., 12\]"),
        (torch.zeros(2, D_IN, dtype=torch.int64), InvalidType, "must be a float tensor"),
        (torch.tensor(1.0), InvalidValue, r"x is \[\]"),
    ],
)
def test_an_x_that_cannot_be_read_is_refused(bad, error, message):
    sae = random_sae()
    for call in (sae, sae.encode, sae.encode_sparse, sae.preactivations):
        with as_in_production(), pytest.raises(error, match=message):
            call(bad)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ([D_SAE], OutOfRange, "Feature 57 does not exist.*0 to 56"),
        ([-1], OutOfRange, "Feature -1 does not exist"),
        ([], InvalidValue, "features is empty"),
        ([1.0], InvalidType, "Feature 1.0 is of type float"),
        ([True], InvalidType, "Feature True is of type bool"),
        ("3", InvalidType, "features='3' is no feature"),
        (torch.tensor([1.0]), InvalidType, "dtype torch.float32"),
        (2**70, OutOfRange, "does not exist"),
    ],
)
@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_features_that_do_not_exist_are_refused(architecture, features, error, message, x):
    with as_in_production(), pytest.raises(error, match=message):
        random_sae(architecture).encode(x, features=features)


def test_decode_refuses_what_it_cannot_decode(x):
    sae = random_sae()
    with pytest.raises(InvalidValue, match=r"decodes floats \[\.\.\., 57\]"):
        sae.decode(torch.zeros(2, 3))
    with pytest.raises(InvalidValue, match="f has 9 features"):
        sae.decode(SparseFeatures(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), 9))
    edited = random_sae(normalize="layer_norm").encode(x) * 2
    with pytest.raises(InvalidValue, match="carries no mean and std"):
        random_sae(normalize="layer_norm").decode(edited)
    skipping = random_sae(**FORMS["skip"])
    with pytest.raises(InvalidValue, match=r"skip path .* reads it"):
        skipping.decode(torch.zeros(2, D_SAE))


def test_decode_of_an_edited_layer_norm_code_takes_x(x):
    sae = random_sae(normalize="layer_norm")
    torch.testing.assert_close(sae.decode(sae.encode(x) * 1, x=x), sae(x), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["topk", "matching_pursuit", "jumprelu", "standard"])
def test_a_slice_is_a_smaller_dictionary(architecture, x):
    sae = random_sae(architecture)
    ids = torch.tensor([30, 4, 11])
    part = SAE(sae.config, features=ids)
    per_row = ("W_enc", "b_enc", "W_dec", "threshold")
    part.load_state_dict({n: v[ids] if n in per_row else v for n, v in sae.state_dict().items()})
    assert torch.equal(part.directions([11, 30]), sae.directions([11, 30]))
    one = SparseFeatures(torch.tensor([[2.0, 1.0]]), torch.tensor([[11, 4]]), D_SAE)
    torch.testing.assert_close(part.decode(one), sae.decode(one))
    with pytest.raises(OutOfRange, match="Feature 5 was not loaded"):
        part.directions([5])
    if sae.kind == "thresholded":
        torch.testing.assert_close(part.encode(x), sae.encode(x)[..., ids], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(part.encode(x, features=[4]), sae.encode(x, features=[4]), atol=1e-5, rtol=1e-5)
        assert set(part.encode_sparse(x).indices.tolist()) <= set(ids.tolist())
    else:
        with pytest.raises(Unsupported, match="This slice of 3 features cannot encode"):
            part.encode(x)


def test_a_dictionary_is_an_ordinary_module(x):
    sae = random_sae("jumprelu")
    assert isinstance(sae, nn.Module)
    assert set(sae.state_dict()) == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    assert torch.equal(copy.deepcopy(sae)(x), sae(x))
    assert "jumprelu, d_in=12, d_sae=57" in repr(sae)


def test_a_new_dictionary_has_unit_decoder_rows_and_encodes_by_them():
    sae = SAE(SAEConfig(architecture="topk", d_in=8, d_sae=32, k=K))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))
    assert torch.equal(sae.W_enc, sae.W_dec)
