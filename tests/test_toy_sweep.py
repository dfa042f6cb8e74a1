"""Recovery breaks with coherence and with the number of active features, and not where the worst-case bound lies."""

import pytest
import torch

from hfsae.toy.closed_form import incoherence_bound, mutual_coherence
from hfsae.toy.sweep import RecoverySweep, recovery_sweep
from hfsae.toy.worlds import World


def test_recovery_breaks_with_more_active_features_and_with_coherence():
    sweep = recovery_sweep(coherences=(0.0, 0.6), l0s=(2.0, 16.0), n=64, d=32, samples=100_000)
    assert sweep.rec90[0, 0] > 0.85
    assert sweep.rec90[0, 1] < 0.3
    assert sweep.f1[1, 0] < sweep.f1[0, 0] - 0.05
    # Training goes on finding directions where the guarantee has long ended.
    assert sweep.bound[0] < 2
    assert sweep.reach()[0] >= 2
    wanted = mutual_coherence(World(n=64, d=32, l0=2.0).directions)
    assert float(sweep.bound[0]) == pytest.approx(incoherence_bound(wanted))
    assert sweep.bound[1] < sweep.bound[0]


def test_reach_is_the_last_column_before_the_first_failure():
    rec90 = torch.tensor([[0.9, 0.85, 0.1, 0.9], [0.1, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.9]])
    sweep = RecoverySweep(
        coherences=(0.0, 0.1, 0.2), l0s=(1.0, 2.0, 4.0, 8.0), rec90=rec90, f1=rec90, mutual_coherence=torch.ones(3) / 2
    )
    assert sweep.reach() == [2, 0, 8]
    assert sweep.reach(share=0.88) == [1, 0, 8]
    assert sweep.bound.tolist() == [1.5] * 3


def test_sweeps_of_equal_seeds_are_equal_and_seeds_are_averaged():
    options = {"coherences": (0.0,), "l0s": (1.0,), "n": 16, "d": 8, "samples": 10_000}
    one, two, both = (recovery_sweep(**options, seeds=seeds) for seeds in ((0,), (1,), (0, 1)))
    assert torch.equal(one.rec90, recovery_sweep(**options).rec90)
    assert torch.allclose((one.f1 + two.f1) / 2, both.f1)
    assert not torch.equal(one.mutual_coherence, two.mutual_coherence)
