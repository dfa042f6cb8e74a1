import json

import pytest
import torch
from safetensors.torch import load_file

from hfsae.dictionary import SAE
from hfsae.errors import InvalidValue, Unsupported
from hfsae.sae.config import SAEConfig
from hfsae.sae.statistics import FeatureStatistics

D, F, OUT, K = 6, 20, 5, 3
PLACE = {"site": "resid_post", "layer": 3, "base_model": "openai-community/gpt2", "base_revision": "607a30d"}


def make(seed=0, **fields):
    """A dictionary with every parameter random."""
    sae = SAE(SAEConfig(**{"architecture": "standard", "d_in": D, "d_sae": F} | PLACE | fields))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sae.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if name == "threshold":
            parameter.data.abs_()
    return sae.eval()


EXPRESSIBLE = {
    "standard": {},
    "not_centred": {"b_pre": "none"},
    "gated": {"architecture": "gated"},
    "jumprelu": {"architecture": "jumprelu", "b_pre": "none"},
    "batchtopk": {"architecture": "batchtopk", "k": K},
    "matryoshka": {"architecture": "matryoshka", "k": K, "group_sizes": (8, 12)},
    "topk": {"architecture": "topk", "k": K},
    "layer_norm": {"architecture": "topk", "k": K, "normalize": "layer_norm"},
    "scaled": {"architecture": "topk", "k": K, "normalize": "scale", "scale": 0.25},
    "transcoder": {"b_pre": "none", "d_out": OUT, "write_site": "mlp_out", "write_layer": 3},
    "skip_transcoder": {
        "architecture": "jumprelu",
        "b_pre": "none",
        "d_out": OUT,
        "write_site": "mlp_out",
        "skip": True,
    },
    "bfloat16": {"architecture": "jumprelu", "dtype": "bfloat16"},
}
X = torch.randn(50, D, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("fields", EXPRESSIBLE.values(), ids=EXPRESSIBLE)
def test_write_then_read_computes_the_same(fields, tmp_path):
    sae = make(**fields)
    again = SAE.from_pretrained(sae.save_pretrained(tmp_path / "a", format="saelens"))
    # bf16 weights with thresholds are widened to fp32, since SAELens would round the thresholds with them
    sae = SAE.from_checkpoint(sae.to_checkpoint(), dtype=again.W_enc.dtype)
    torch.testing.assert_close(again(X), sae(X), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.encode(X), sae.encode(X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", EXPRESSIBLE.values(), ids=EXPRESSIBLE)
def test_write_then_read_keeps_tensors_and_place(fields, tmp_path):
    sae = make(**fields)
    again = SAE.from_pretrained(sae.save_pretrained(tmp_path / "a", format="saelens"))
    assert again.config.place == sae.config.place
    assert again.config.base_revision == "607a30d"
    if sae.config.normalize != "scale":
        for name, parameter in sae.named_parameters():
            assert torch.equal(getattr(again, name), parameter.to(getattr(again, name).dtype)), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "matching_pursuit", "k": K}, "cannot express matching_pursuit"),
        ({"architecture": "topk", "k": K, "d_out": OUT, "b_pre": "none"}, "cannot express a topk transcoder"),
        ({"b_pre": "own"}, "cannot express b_pre='own' here"),
        ({"write_site": "mlp_out", "d_out": D}, "cannot express b_pre='tied' here"),
    ],
)
def test_what_saelens_cannot_express_is_refused_and_nothing_is_written(fields, message, tmp_path):
    with pytest.raises(Unsupported, match=message):
        make(**fields).save_pretrained(tmp_path / "a", format="saelens")
    assert not (tmp_path / "a").exists()


def test_slice_is_refused(tmp_path):
    make().save_pretrained(tmp_path / "ours")
    part = SAE.from_pretrained(tmp_path / "ours", features=[1, 2])
    with pytest.raises(Unsupported, match="This is a slice"):
        part.save_pretrained(tmp_path / "a", format="saelens")


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidValue, match="holds something else"):
        make().save_pretrained(tmp_path, format="saelens")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_config_uses_the_names_of_saelens(tmp_path):
    path = make(site="attn_z", architecture="topk", k=K).save_pretrained(tmp_path / "a", format="saelens")
    values = json.loads((path / "cfg.json").read_text())
    assert values["architecture"] == "topk"
    assert values["k"] == K
    assert values["apply_b_dec_to_input"] is True
    assert values["reshape_activations"] == "hook_z"
    assert values["metadata"]["hook_name"] == "blocks.3.attn.hook_z"
    assert values["metadata"]["model_name"] == "openai-community/gpt2"
    assert list(load_file(path / "sae_weights.safetensors")["W_enc"].shape) == [D, F]


def test_density_is_written_as_log_sparsity(tmp_path):
    sae = make()
    density = torch.full((F,), 0.01)
    sae.statistics = FeatureStatistics(density=density, max=density, mean=density, mean_norm=1.0, tokens=100)
    path = sae.save_pretrained(tmp_path / "a", format="saelens")
    assert torch.allclose(load_file(path / "sparsity.safetensors")["sparsity"], torch.tensor(-2.0))
