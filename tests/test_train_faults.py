"""What can go wrong around a run: streams that break, memory that runs out, disks that are full."""

import resource
import subprocess
import sys

import pytest
import torch

from hfsae.data.sources import unbroken
from hfsae.errors import HfsaeWarning, InvalidType, TrainingError
from hfsae.train import History, TrainConfig, train
from hfsae.train.stepping import Stepper
from tests.test_train_resume import ONE_THREAD, run, same

sources = sys.modules["hfsae.data.sources"]
SMALL = TrainConfig(d_sae=64, k=4, tokens=4096, batch_size=256)


class Breaking:
    """Documents that break off at some positions, each once or for good."""

    def __init__(self, documents, at, for_good=False):
        self.documents, self.at, self.for_good = documents, set(at), for_good

    def __iter__(self):
        for number, document in enumerate(self.documents):
            if number in self.at:
                if not self.for_good:
                    self.at.discard(number)
                raise ConnectionResetError("reset by peer")
            yield document


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(sources, "_PAUSES", (0.0, 0.0))


@pytest.fixture
def rows():
    ids = torch.randint(3, 96, (200, 32), generator=torch.Generator().manual_seed(0))
    return [row.tolist() for row in ids]


def test_a_stream_that_breaks_is_opened_again_and_misses_nothing():
    with pytest.warns(HfsaeWarning, match=r"documents \(ConnectionResetError: reset by peer\). It is opened again"):
        assert list(unbroken(Breaking(range(20), at=[3, 7]))) == list(range(20))


def test_a_stream_that_stays_broken_is_said():
    with (
        pytest.warns(HfsaeWarning, match="opened again"),
        pytest.raises(TrainingError, match=r"after 5 documents.*opened 2 times more"),
    ):
        list(unbroken(Breaking(range(20), at=[5], for_good=True)))
    with pytest.raises(TrainingError, match="iterator cannot be opened again"):
        list(unbroken(iter(Breaking(range(20), at=[5]))))


def test_a_run_whose_stream_broke_is_saved_and_ends_as_if_it_had_not(tmp_path, tiny_gpt2, rows):
    whole = train(tiny_gpt2, Breaking(rows, at=[]), layer=1, config=SMALL, progress=False)
    broken = Breaking(rows, at=[170], for_good=True)
    small_ring = {"layer": 1, "config": SMALL, "folder": tmp_path, "checkpoint_every": 1000, "progress": False}
    with pytest.warns(HfsaeWarning, match="opened again"), pytest.raises(TrainingError, match="broke off"):
        train(tiny_gpt2, broken, **small_ring)
    broken.at.clear()
    assert same(train(tiny_gpt2, broken, **small_ring).state_dict(), whole.state_dict())


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("[enforce fail] can't allocate memory: 9 bytes")],
)
def test_memory_that_runs_out_names_the_settings_that_help(error, monkeypatch):
    def step(*_):
        raise error

    monkeypatch.setattr(Stepper, "update", step)
    with pytest.raises(TrainingError, match=r"Memory ran out.*batch_size=64, d_sae=32 and.*buffer_bytes=19200"):
        run()


def test_other_errors_of_a_step_pass_unchanged(monkeypatch):
    def step(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Stepper, "update", step)
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        run()


def test_training_is_evaluated_in_the_model_as_it_goes_on(tiny_gpt2, rows):
    history = History()
    options = {"layer": 1, "config": TrainConfig.from_dict({**SMALL.to_dict(), "architecture": "gated"})}
    sae = train(tiny_gpt2, rows, **options, eval_every=6, eval_data=rows[:8], callbacks=[history], progress=False)
    probed = {entry.step: entry.extra for entry in history.figures if entry.extra}
    assert list(probed) == [6, 12, 16]
    assert set(probed[6]) == {"held_out_fvu", "ce_clean", "ce_spliced", "recovered"}
    assert probed[16]["held_out_fvu"] < probed[6]["held_out_fvu"] < 1.2
    plain = train(tiny_gpt2, rows, **options, progress=False)
    assert same(sae.state_dict(), plain.state_dict())


def test_evaluations_need_data_and_a_model(tiny_gpt2, rows):
    with pytest.raises(InvalidType, match="do not go together"):
        train(tiny_gpt2, rows, layer=1, config=SMALL, eval_every=5)


FULL = """
import resource, signal, sys, warnings
sys.path.insert(0, {root!r})
from tests.test_train_resume import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
class Shrink:
    def on_start(self, config, tokens_done): pass
    def on_figures(self, figures):
        if figures.step == 9: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    def on_end(self): pass
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    run({folder!r}, checkpoint_every=4, callbacks=[Shrink()])
print([str(warning.message) for warning in said])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on the size of files here")
def test_a_limit_on_file_size_leaves_the_previous_checkpoint_loadable(tmp_path, request):
    script = FULL.format(root=str(request.config.rootpath), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ONE_THREAD, check=True)
    assert "could not be written" in done.stdout
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-000000004", "step-000000008"]
    assert same(run(tmp_path), run())
