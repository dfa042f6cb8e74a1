"""Runs that are stopped go on bit for bit, whatever stopped them; a folder never loses its last good checkpoint."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hfsae.errors import HfsaeWarning, TrainingError
from hfsae.toy.worlds import World
from hfsae.train import DataConfig, DeadConfig, TrainConfig, train
from hfsae.train.checkpoints import Checkpoints

checkpoints = sys.modules["hfsae.train.checkpoints"]

CONFIG = TrainConfig(
    d_sae=32,
    k=2,
    tokens=64 * 40,
    batch_size=64,
    dead=DeadConfig(after_firings=2.0),
    data=DataConfig(buffer_bytes=4 * 16 * 300),
)
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""As in this process (conftest): sums over another number of threads round differently."""

SCRIPT = """
import sys, warnings
sys.path.insert(0, {root!r})
from tests.test_train_resume import CONFIG, stream
from hfsae.train import train
class Slow:
    def on_start(self, config, tokens_done): print("started", tokens_done, flush=True)
    def on_figures(self, figures): __import__("time").sleep({pause})
    def on_end(self): pass
options = dict(folder={folder!r}, checkpoint_every=3, callbacks=[Slow()], progress=False)
sae = train(activations=stream(), config=CONFIG, **options)
__import__("torch").save(sae.state_dict(), {out!r})
"""


def stream():
    world = World(name="zipf", n=32, d=16, l0=2.0)
    return list(world.activations(3000, batch=170, seed=1))


def run(folder=None, **options):
    return train(activations=stream(), config=CONFIG, folder=folder, progress=False, **options).state_dict()


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


class StopAt:
    """Fails at a step, as a crash would, but in process."""

    def __init__(self, step, action=None):
        self.step, self.action = step, action

    def on_start(self, config, tokens_done):
        pass

    def on_figures(self, figures):
        if figures.step == self.step:
            if self.action is None:
                raise RuntimeError("power cut")
            self.action()

    def on_end(self):
        pass


@pytest.fixture(scope="module")
def unbroken():
    return run()


@pytest.mark.parametrize("step", [5, 13, 39])
def test_a_run_that_crashed_ends_bit_identical(tmp_path, unbroken, step):
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, checkpoint_every=4, callbacks=[StopAt(step)])
    assert same(run(tmp_path, checkpoint_every=4), unbroken)


def test_a_finished_run_is_finished_again_without_training(tmp_path, unbroken):
    run(tmp_path)
    assert same(run(tmp_path, callbacks=[StopAt(1)]), unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_with_its_code(tmp_path, unbroken, number):
    stop = StopAt(7, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as exit_info:
        run(tmp_path, checkpoint_every=1000, callbacks=[stop])
    assert exit_info.value.code == 128 + number
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000000007"]
    assert same(run(tmp_path), unbroken)


def test_a_damaged_checkpoint_is_said_and_the_one_before_used(tmp_path, unbroken):
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, checkpoint_every=4, callbacks=[StopAt(15)])
    newest = sorted(tmp_path.glob("step-*"))[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    with pytest.warns(HfsaeWarning, match="step-000000012.*sha256 differs"):
        assert same(run(tmp_path, checkpoint_every=4), unbroken)


def test_other_settings_are_listed_and_refused(tmp_path):
    run(tmp_path)
    changed = TrainConfig.from_dict({**CONFIG.to_dict(), "k": 3, "seed": 1})
    with pytest.raises(TrainingError, match=r"config.k: 2 before, 3 now; config.seed: 0 before, 1 now"):
        train(activations=stream(), config=changed, folder=tmp_path, progress=False)


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    with Checkpoints(tmp_path, 1).held(), pytest.raises(TrainingError, match="Another run is training"):
        run(tmp_path)


def test_a_full_disk_leaves_the_previous_checkpoint_loadable(tmp_path, unbroken, monkeypatch):
    def full(path, tensors):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    stop = StopAt(9, lambda: monkeypatch.setattr(checkpoints, "write_tensors", full))
    with pytest.warns(HfsaeWarning, match=r"could not be written.*No space left.*step-000000008"):
        run(tmp_path, checkpoint_every=4, callbacks=[stop])
    monkeypatch.undo()
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-000000004", "step-000000008"]
    assert same(run(tmp_path), unbroken)


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path):
    def broken():
        x = stream()
        return [*x[:8], x[8] * 1e30, *x[9:]]

    config = TrainConfig.from_dict({**CONFIG.to_dict(), "tokens": 64 * 40})
    with pytest.raises(TrainingError, match=r"must be finite. The last good checkpoint is .*step-"):
        train(activations=broken(), config=config, folder=tmp_path, checkpoint_every=1, progress=False)


@pytest.mark.slow
def test_a_run_killed_at_random_instants_ends_bit_identical(tmp_path, unbroken):
    out, root, kills = tmp_path / "out.pt", str(Path(__file__).parents[1]), 0
    script = SCRIPT.format(root=root, folder=str(tmp_path / "run"), out=str(out), pause=0.05)
    rng = random.Random(0)
    while not out.exists():
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root, env=ONE_THREAD
        ) as process:
            assert process.stdout.readline()
            if kills < 4:
                time.sleep(rng.uniform(0.1, 1.0))
                process.kill()
                kills += 1
    assert kills == 4
    assert same(torch.load(out, weights_only=True), unbroken)


def test_a_run_that_splits_features_goes_on_exactly(tmp_path, monkeypatch):
    stepping = sys.modules["hfsae.train.stepping"]
    plain, splits = stepping.split, []

    def counted(*args):
        taken = plain(*args)
        splits.append(len(taken))
        return taken

    monkeypatch.setattr(stepping, "split", counted)
    world = World(name="hierarchical", n=64, d=16, l0=2.0)
    rows = list(world.activations(20_000, batch=1000, seed=1))
    config = TrainConfig(d_sae=64, k=2, tokens=64 * 300, batch_size=64, dead=DeadConfig(after_firings=5.0))
    options = {"activations": rows, "config": config, "progress": False}
    whole = train(**options).state_dict()
    assert sum(splits) > 0
    with pytest.raises(RuntimeError, match="power cut"):
        train(**options, folder=tmp_path, checkpoint_every=7, callbacks=[StopAt(150)])
    assert same(train(**options, folder=tmp_path, checkpoint_every=7).state_dict(), whole)
