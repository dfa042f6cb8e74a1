"""The cache for delphi holds every firing, in its format."""

import json

import pytest
import torch
from indexed import BOS, attached, features_of
from safetensors.numpy import load_file

from hfsae.errors import InvalidValue
from hfsae.features import save_delphi_cache

attachment = pytest.fixture(attached)
CONTEXT = 8


def test_every_firing_comes_back_as_delphi_reads_it(attachment, tmp_path):
    generator = torch.Generator().manual_seed(7)
    rows = [[BOS, *torch.randint(3, 20, (n,), generator=generator).tolist()] for n in (7, 7, 3, 7)]
    full = [row for row in rows if len(row) == CONTEXT]
    module = save_delphi_cache(attachment, rows, tmp_path, files=3, context=CONTEXT, batch_size=2, pack=False)
    assert module == tmp_path / "transformer.h.1"
    assert json.loads((module / "config.json").read_text())["cache_ctx_len"] == CONTEXT
    f = torch.zeros(len(full), CONTEXT, 24)
    files = sorted(module.glob("*.safetensors"))
    assert [file.stem for file in files] == ["0_7", "16_23", "8_15"]
    for file in files:
        held = load_file(file)
        assert held["tokens"].tolist() == full
        row, position, feature = torch.tensor(held["locations"].astype("int64")).T
        f[row, position, feature + int(file.stem.split("_")[0])] = torch.tensor(held["activations"]).float()
    expected = torch.stack([features_of(attachment, row) for row in full])
    assert torch.allclose(f, expected, rtol=2e-3, atol=1e-4)


def test_bad_input_is_one_clear_error(attachment, tmp_path):
    with pytest.raises(InvalidValue, match="fill no row of 8 tokens"):
        save_delphi_cache(attachment, [[BOS, 3, 4]], tmp_path, context=CONTEXT)
    with pytest.raises(InvalidValue, match="files=25 is out of range"):
        save_delphi_cache(attachment, [[BOS, 3, 4]], tmp_path, files=25)
    assert not list(tmp_path.iterdir())
