"""`SAE` is saved and loaded whole, found by layer and site, known by its weights, and refused where it does not fit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from dictionaries import D_IN, D_SAE, activations, as_in_production, random_sae, statistics_of

from hfsae.dictionary import SAE
from hfsae.errors import (
    CheckpointError,
    CheckpointNotFound,
    InvalidType,
    InvalidValue,
    Mismatch,
    OutOfRange,
    Unsupported,
)
from hfsae.sae.architectures import ARCHITECTURES
from hfsae.sae.statistics import FeatureStatistics, Label

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@every_architecture
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_write_then_read_gives_the_same_dictionary(architecture, dtype, tmp_path):
    sae = random_sae(architecture, site="resid_post", layer=3, base_model="me/model", dtype=dtype)
    sae.statistics, sae.labels = statistics_of(sae), {4: Label("four", "me"), 11: Label("é", "you")}
    sae.save_pretrained(tmp_path)
    read = SAE.from_pretrained(tmp_path)
    assert read.config == sae.config
    assert read.labels == sae.labels
    assert read.state_dict().keys() == sae.state_dict().keys()
    for name, value in sae.state_dict().items():
        assert torch.equal(read.state_dict()[name], value)
        assert read.state_dict()[name].dtype == value.dtype
    stored, given = read.statistics.to_tensors(), sae.statistics.to_tensors()
    assert all(torch.equal(stored[name], given[name]) for name in given)
    assert read.id == sae.id
    assert not read.training


@every_architecture
@pytest.mark.parametrize("fields", [{"b_pre": "own"}, {"b_pre": "none", "d_out": 20, "skip": True}], ids=str)
def test_every_optional_parameter_is_kept(architecture, fields, tmp_path):
    if "d_out" in fields and not ARCHITECTURES[architecture].transcodes:
        pytest.skip("it cannot be a transcoder")
    sae = random_sae(architecture, **fields)
    read = SAE.from_pretrained(sae.save_pretrained(tmp_path))
    assert torch.equal(read(activations(4, D_IN)), sae(activations(4, D_IN)))


@every_architecture
def test_named_rows_load_as_the_rows_they_are(architecture, tmp_path):
    sae = random_sae(architecture, site="mlp_out", layer=0)
    sae.save_pretrained(tmp_path)
    part = SAE.from_pretrained(tmp_path, features=[9, 2])
    assert part.features.tolist() == [9, 2]
    assert part.W_enc.shape == (2, D_IN)
    assert part.id == sae.id
    assert torch.equal(part.directions([2]), sae.directions([2]))
    with pytest.raises(Unsupported, match="Only whole ones are saved"):
        part.save_pretrained(tmp_path / "elsewhere")
    with pytest.raises(OutOfRange, match="Feature 57 does not exist"):
        SAE.from_pretrained(tmp_path, features=[D_SAE])


def test_a_scale_is_folded_when_saved(tmp_path):
    sae = random_sae("jumprelu", normalize="scale", scale=0.3, site="resid_post", layer=1)
    read = SAE.from_pretrained(sae.save_pretrained(tmp_path))
    assert read.config.normalize == "none"
    assert read.id == sae.id
    torch.testing.assert_close(read(activations(5, D_IN)), sae(activations(5, D_IN)), atol=2e-5, rtol=1e-5)


def test_a_cast_keeps_thresholds_in_fp32(tmp_path):
    sae = random_sae("jumprelu")
    for dtype in ("bfloat16", torch.float16):
        read = SAE.from_pretrained(sae.save_pretrained(tmp_path), dtype=dtype)
        assert read.config.dtype == str(dtype).removeprefix("torch.")
        assert read.W_enc.dtype == getattr(torch, read.config.dtype)
        assert torch.equal(read.threshold, sae.threshold)
    with pytest.raises(InvalidValue, match="dtype='load' is unknown"):
        SAE.from_pretrained(tmp_path, dtype="load")


def test_one_of_several_is_found_by_layer_site_or_subfolder(tmp_path):
    for site, layer in [("resid_post", 2), ("resid_post", 5), ("mlp_out", 5)]:
        random_sae(site=site, layer=layer, seed=layer).save_pretrained(tmp_path)
    assert SAE.from_pretrained(tmp_path, layer=2).config.place == "resid_post.layer_2"
    assert SAE.from_pretrained(tmp_path, layer=5, site="mlp_out").config.place == "mlp_out.layer_5"
    assert SAE.from_pretrained(tmp_path, subfolder="mlp_out.layer_5").config.layer == 5
    assert SAE.from_pretrained(str(tmp_path / "mlp_out.layer_5")).config.layer == 5
    with pytest.raises(InvalidValue, match="holds 3 dictionaries that fit"):
        SAE.from_pretrained(tmp_path)
    with pytest.raises(CheckpointNotFound, match="holds no dictionary for layer=7"):
        SAE.from_pretrained(tmp_path, layer=7)
    with pytest.raises(Mismatch, match="is of layer 5, asked for was 4"):
        SAE.from_pretrained(tmp_path / "mlp_out.layer_5", layer=4)


def test_the_id_names_model_place_and_weights(tmp_path):
    sae = random_sae(site="resid_post", layer=3, base_model="me/model")
    start, _, digits = sae.id.partition("@")
    assert start == "me/model/resid_post.layer_3"
    assert len(digits) == 8
    read = SAE.from_pretrained(sae.save_pretrained(tmp_path))
    assert read.to(torch.float32).id == sae.id
    with torch.no_grad():
        read.b_enc.add_(1)
    assert read.id != sae.id


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("/nowhere/at/all", CheckpointNotFound, "does not exist"),
        (Path("not/here"), CheckpointNotFound, "does not exist"),
        ("a/b/c/d", CheckpointNotFound, "is no folder here and no Hub id"),
        ("", InvalidValue, "is empty"),
        ("a\0b", InvalidValue, "cannot be a path"),
        (3, InvalidType, "3 is no dictionary"),
    ],
)
def test_what_is_nowhere_is_said_to_be(name, error, message):
    with as_in_production(), pytest.raises(error, match=message):
        SAE.from_pretrained(name)


def test_a_folder_of_no_known_format_is_refused(tmp_path):
    (tmp_path / "sae.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is of no known format"):
        SAE.from_pretrained(tmp_path)
    with pytest.raises(InvalidValue, match="format='hfsea' is unknown. Did you mean 'hfsae'"):  # noqa: RUF043
        SAE.from_pretrained(tmp_path, format="hfsea")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    sae = random_sae()
    sae.W_enc.data[3, 1] = float("nan")
    with pytest.raises(InvalidValue, match="'W_enc' holds 1 numbers that are NaN or infinite"):
        sae.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_target_that_cannot_be_written_is_said_to_be(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match="file"):
            random_sae().save_pretrained(target)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": torch.zeros(4)}, "differ in shape"),
        ({"max": torch.full((D_SAE,), float("nan"))}, "a max that is negative or not finite"),
        ({"mean_norm": -1.0}, "must be finite and >= 0"),
        ({"mean_activation": torch.tensor([float("inf")])}, "mean_activation that is not finite"),
    ],
)
def test_statistics_that_cannot_be_are_refused(change, message):
    stats = statistics_of(random_sae())
    fields = {n: getattr(stats, n) for n in stats.__dataclass_fields__} | change
    with pytest.raises(InvalidValue, match=message):
        FeatureStatistics(**fields)
    with pytest.raises(InvalidValue, match="have no 'max'"):
        FeatureStatistics.from_tensors({"density": torch.zeros(2)})


SAVER = """
import sys
sys.path.insert(0, "tests")
from dictionaries import random_sae
sae = random_sae("topk", site="resid_post", layer=1)
print("ready", flush=True)
while True:
    sae.W_enc.data.add_(1)
    sae.save_pretrained(sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_save_leaves_a_folder_that_loads(tmp_path):
    random_sae("topk", site="resid_post", layer=1).save_pretrained(tmp_path / "repository")
    root = Path(__file__).parents[1]
    for trial in range(5):
        command = [sys.executable, "-c", SAVER, str(tmp_path / "repository")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
            process.stdout.readline()
            time.sleep(0.05 + 0.03 * trial)
            os.kill(process.pid, signal.SIGKILL)
        assert SAE.from_pretrained(tmp_path / "repository", layer=1).config.d_in == D_IN
    random_sae("topk", site="resid_post", layer=1).save_pretrained(tmp_path / "repository")
    assert not list((tmp_path / "repository").glob(".*"))
