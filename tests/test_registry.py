import json

import pytest

from hfsae import registry
from hfsae.formats.holdings import choose, holdings


@pytest.mark.parametrize("release", registry._published(), ids=lambda r: f"{r.repo_id}-{r.subfolder[:40]}")
def test_release_names_a_folder_for_every_layer(release):
    folders = [release.at(layer).subfolder for layer in release.layers]
    assert "{" not in "".join(folders)
    assert len(set(folders)) == len(release.layers)
    assert not release.variants or len(release.variants) == len(release.layers)


@pytest.mark.parametrize(
    ("base_model", "layer", "site"),
    [
        ("openai-community/gpt2", 8, "resid_post"),
        ("openai-community/gpt2", 8, "resid_pre"),
        ("EleutherAI/pythia-70m-deduped", 3, "mlp_out"),
        ("google/gemma-2-9b", 20, "attn_z"),
        ("google/gemma-3-4b-it", 17, "resid_post"),
        ("meta-llama/Llama-3.1-8B", 15, "resid_post"),
        ("Qwen/Qwen3-8B-Base", 35, "resid_post"),
    ],
)
def test_find_returns_the_dictionary_of_that_model_layer_and_site(base_model, layer, site):
    found = registry.find(base_model, layer, site)
    assert (found.base_model, found.layer, found.site) == (base_model, layer, site)
    assert str(layer) in found.subfolder


def test_find_returns_none_where_nothing_is_registered():
    assert registry.find("nobody/nothing", 0) is None
    assert registry.find(None, 0) is None
    assert registry.find("openai-community/gpt2", 12) is None


def test_find_never_returns_a_transcoder():
    assert any(release.write_site for release in registry.known("google/gemma-3-1b-pt"))
    assert registry.find("google/gemma-3-1b-pt", 3, "mlp_in") is None


def test_find_follows_a_forwarded_model_id():
    assert registry.find("gpt2", 8) == registry.find("openai-community/gpt2", 8)


def test_known_releases_print_as_a_line_with_site_layers_and_repository():
    lines = [str(release) for release in registry.known("google/gemma-2-27b")]
    assert lines == ["resid_post, layers 10, 22, 34: google/gemma-scope-27b-pt-res (131k features, JumpReLU)"]


def test_models_lists_every_base_model_once():
    names = registry.models()
    assert len(names) == len(set(names)) > 20
    assert registry.SHIPPED in names


def test_shipped_dictionaries_are_found_under_the_shipped_model(tmp_path, monkeypatch):
    folder = tmp_path / "default" / "files" / "resid_post.layer_1"
    folder.mkdir(parents=True)
    config = {"site": "resid_post", "layer": 1, "d_sae": 1536, "architecture": "batchtopk"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sae.safetensors").write_bytes(b"")
    monkeypatch.setattr(registry, "files", lambda _package: tmp_path)
    assert registry.find(registry.SHIPPED, 1).path == folder
    assert registry.find(registry.SHIPPED, 2) is None
    assert str(registry.known(registry.SHIPPED)[0]).endswith("(1,536 features, batchtopk)")


def test_registered_subfolder_chooses_its_dictionary_among_similar_names():
    names = [
        f"transcoder_all/layer_{n}_width_16k_l0_big{tail}/params.safetensors"
        for n in (1, 12)
        for tail in ("", "_affine")
    ]
    wanted = "transcoder_all/layer_1_width_16k_l0_big"
    assert choose(holdings(names), where="'x/y'", subfolder=wanted).at == wanted
