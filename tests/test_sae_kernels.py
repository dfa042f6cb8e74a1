"""Scans are exact, on either route of the product; gradients of sparse kernels are those of the dense computation."""

import pytest
import torch
from torch.nn import functional

from hfsae.sae import kernels, products
from hfsae.sae.architectures import ARCHITECTURES
from hfsae.sae.folding import fold_gated, fold_scale
from hfsae.sae.pursuit import matching_pursuit
from hfsae.sae.refining import refined_topk

from dictionaries import D_IN, activations, config_of, random_sae  # isort: skip

WIDTHS = [1, 3, 15, 16, 17, 100, 2048, 5003]


@pytest.fixture(params=["onednn", "plain"])
def route(request, monkeypatch):
    """Both products: oneDNN's operator where it is there, and torch's own."""
    if request.param == "plain":
        monkeypatch.setattr(products, "_onednn_is_right", lambda: False)
    elif not products._onednn_is_right():
        pytest.skip("this build of torch has no oneDNN linear operator")
    return request.param


def _weights(width, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(width, D_IN, generator=generator), torch.randn(width, generator=generator)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("tokens", [1, 40])
def test_topk_scan_is_topk_of_the_product(route, width, tokens):
    x, (W, b) = activations(tokens, D_IN), _weights(width)
    for k in {1, min(7, width), width}:
        values, indices = kernels.topk_scan(x, W, b, k)
        want = functional.linear(x, W, b).topk(k).values.relu()
        torch.testing.assert_close(values, want, atol=1e-5, rtol=1e-5)
        z = functional.linear(x, W, b)
        torch.testing.assert_close(z.gather(1, indices).relu(), values, atol=1e-5, rtol=1e-5)
        assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("tokens", [1, 40, 1300])
def test_batch_topk_scan_is_topk_of_the_whole_product(route, width, tokens):
    x, (W, b) = activations(tokens, D_IN), _weights(width)
    z = functional.linear(x, W, b)
    for count in {1, min(2 * tokens, z.numel()), tokens * width}:
        values, indices, owners = kernels.batch_topk_scan(x, W, b, count)
        torch.testing.assert_close(
            values.sort(descending=True).values, z.flatten().topk(count).values.relu(), atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(z[owners, indices].relu(), values, atol=1e-5, rtol=1e-5)
        assert len(set(zip(owners.tolist(), indices.tolist(), strict=True))) == count
        assert torch.equal(owners, owners.sort().values)


def test_batch_topk_scan_gives_no_tile_much_more_than_its_share():
    x, (W, b) = activations(2048, D_IN), _weights(30)
    _, _, owners = kernels.batch_topk_scan(torch.cat([10 * x[:512], x[512:]]), W, b, 4000)
    assert (owners < 512).sum() == 1250
    assert len(owners) == 4000


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("spread", [0.0, 0.5, 8.0])
def test_threshold_scan_is_a_mask_of_the_product(route, width, spread):
    x, (W, b) = activations(40, D_IN), _weights(width)
    threshold = spread * torch.rand(width, generator=torch.Generator().manual_seed(5))
    values, indices, offsets = kernels.threshold_scan(x, W, b, threshold)
    z = functional.linear(x, W, b)
    near = (z - threshold).abs() < 1e-5
    dense = torch.zeros_like(z).index_put((kernels.token_of_entry(offsets, len(values)), indices), values)
    want = z * (z > threshold)
    torch.testing.assert_close(dense[~near], want[~near], atol=1e-5, rtol=1e-5)
    for token in range(40):
        mine = indices[offsets[token] : offsets[token + 1]]
        assert torch.equal(mine, mine.sort().values)


def test_an_operator_that_is_absent_or_wrong_is_not_used(monkeypatch):
    products._onednn_is_right.cache_clear()
    monkeypatch.setattr(products, "_onednn", lambda x, weight, bias: functional.linear(x, weight))
    assert not products._onednn_is_right()
    products._onednn_is_right.cache_clear()

    def absent(x, weight, bias):
        raise AttributeError("no such operator")

    monkeypatch.setattr(products, "_onednn", absent)
    assert not products._onednn_is_right()
    x, (W, b) = activations(4, D_IN), _weights(30)
    assert torch.equal(products.affine(x, W, b), functional.linear(x, W, b))
    monkeypatch.undo()
    products._onednn_is_right.cache_clear()


@pytest.mark.parametrize("dense", [False, True], ids=["gather", "dense"])
def test_gather_decode_is_the_dense_product(monkeypatch, dense):
    monkeypatch.setattr(kernels, "_DENSE_FROM", -1.0 if dense else 2.0)
    monkeypatch.setattr(kernels, "_TILE_BYTES", 1000)
    W, b = _weights(50)[0].double(), torch.randn(D_IN, dtype=torch.float64)
    f = torch.rand(9, 50, dtype=torch.float64) * (torch.rand(9, 50) < 0.2)
    f[4] = 0
    tokens, indices = f.nonzero(as_tuple=True)
    offsets = functional.pad(torch.bincount(tokens, minlength=9).cumsum(0), (1, 0))
    got = kernels.gather_decode(f[tokens, indices], indices, W, b, offsets)
    torch.testing.assert_close(got, f @ W + b)


def test_gradients_pass_gradcheck():
    generator = torch.Generator().manual_seed(0)
    W, x, b = (torch.randn(s, generator=generator).double().requires_grad_() for s in ((30, 6), (4, 6), (30,)))
    indices = torch.randint(0, 30, (4, 3), generator=generator)
    values = torch.rand(4, 3, generator=generator).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v, w: kernels.gather_decode(v, indices, w, None), (values, W))
    assert torch.autograd.gradcheck(lambda *args: kernels.topk_scan(*args, 3)[0], (x, W, b))
    threshold = torch.rand(30, generator=generator)
    assert torch.autograd.gradcheck(lambda *args: kernels.threshold_scan(*args, threshold)[0], (x, W, b))
    assert torch.autograd.gradcheck(lambda *args: matching_pursuit(*args, 0.3 * W, 3, threshold)[0], (x, W, b))
    assert torch.autograd.gradcheck(lambda *args: refined_topk(*args, 0.3 * W, 8, threshold)[0], (x, W, b))


def test_a_row_of_zeros_in_the_decoder_leaves_refined_codes_finite():
    sae = random_sae("refined_topk")
    sae.W_dec.data[:30] = 0
    assert torch.isfinite(sae.encode(activations(50, D_IN))).all()


def test_a_gated_encoder_folds_exactly():
    generator = torch.Generator().manual_seed(4)
    x, (W, b_gate) = activations(50, D_IN).double(), (t.double() for t in _weights(40))
    r_mag, b_mag = torch.randn(2, 40, generator=generator).double()
    gate = (x @ W.T + b_gate > 0).double()
    want = gate * (x @ (W * r_mag.exp()[:, None]).T + b_mag).relu()
    folded = fold_gated(W, b_gate, r_mag, b_mag)
    z = x @ folded.W_enc.T + folded.b_enc
    torch.testing.assert_close(z * (z > folded.threshold), want, atol=1e-6, rtol=1e-6)
    assert folded.threshold.dtype == torch.float32
    assert 0.1 < gate.mean() < 0.9


@pytest.mark.parametrize(
    "fields", [{}, {"b_pre": "own"}, {"b_pre": "none", "d_out": 20}, {"write_site": "mlp_out"}], ids=str
)
@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "standard", "matching_pursuit", "refined_topk"])
def test_a_folded_scale_changes_nothing(architecture, fields):
    if not ARCHITECTURES[architecture].transcodes and fields not in ({}, {"b_pre": "own"}):
        pytest.skip(f"{architecture} writes what it reads")
    sae = random_sae(architecture, normalize="scale", scale=0.21, **fields)
    config, tensors = fold_scale(sae.config, {n: p.detach() for n, p in sae.named_parameters()})
    assert config.normalize == "none"
    folded = type(sae)(config)
    folded.load_state_dict(tensors)
    x = activations(9, D_IN)
    torch.testing.assert_close(folded.encode(x), sae.encode(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(folded(x), sae(x), atol=5e-5, rtol=1e-5)


def test_folding_without_a_scale_changes_nothing_at_all():
    config = config_of("topk")
    assert fold_scale(config, {})[0] is config
