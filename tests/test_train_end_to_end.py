"""Fine-tuning on the model's own predictions: it changes them less afterwards, and the model is only read."""

import signal
import sys

import pytest
import torch

from hfsae.attach import attach
from hfsae.errors import InvalidValue, TrainingError
from hfsae.evaluate import evaluate
from hfsae.train import TrainConfig, finetune, train


@pytest.fixture
def ids():
    return torch.randint(3, 96, (64, 32), generator=torch.Generator().manual_seed(0))


def dictionary(model, ids, architecture="topk", **place):
    config = TrainConfig(architecture=architecture, d_sae=64, k=4, tokens=4096, batch_size=256)
    return train(model, ids, layer=1, config=config, progress=False, **place)


def measured(model, sae, ids):
    with attach(model, sae=sae, force=True) as attachment:
        return evaluate(attachment, ids, progress=False)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_finetune_changes_the_predictions_less_and_leaves_the_model_alone(architecture, tiny_gpt2, ids):
    sae = dictionary(tiny_gpt2, ids, architecture)
    weights = {name: tensor.clone() for name, tensor in tiny_gpt2.state_dict().items()}
    tuned = finetune(tiny_gpt2, ids, sae, tokens=8192, batch_size=8, context=32, learning_rate=1e-3)
    assert measured(tiny_gpt2, tuned, ids).kl < 0.9 * measured(tiny_gpt2, sae, ids).kl
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny_gpt2.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_gpt2.parameters())
    torch.testing.assert_close(tuned.W_dec.norm(dim=1), sae.W_dec.norm(dim=1))
    assert tuned.statistics is not None


def test_finetune_takes_transcoders(tiny_gpt2, ids):
    sae = dictionary(tiny_gpt2, ids, write_layer=2)
    tuned = finetune(tiny_gpt2, ids, sae, tokens=2048, batch_size=8, context=32, learning_rate=1e-3)
    assert measured(tiny_gpt2, tuned, ids).kl < measured(tiny_gpt2, sae, ids).kl


def test_finetune_refuses_what_cannot_work(tiny_gpt2, ids):
    sae = dictionary(tiny_gpt2, ids)
    for wrong in ({"tokens": 0}, {"batch_size": 0}, {"context": 0}, {"learning_rate": 0.0}):
        with pytest.raises(InvalidValue, match=f"{next(iter(wrong))}=0.* is out of range"):
            finetune(tiny_gpt2, ids, sae, **wrong)
    with pytest.raises(InvalidValue, match="no token that is spliced"):
        finetune(tiny_gpt2, ids[:, :1], sae, tokens=64, context=32)
    with pytest.raises(TrainingError, match="Lower learning_rate"):
        finetune(tiny_gpt2, ids, sae, tokens=8192, context=32, learning_rate=1e20)


@pytest.mark.parametrize("stops", [[3], [1, 9, 14]])
def test_a_finetuning_that_was_stopped_goes_on_exactly(stops, tiny_gpt2, ids, tmp_path, monkeypatch):
    sae, tuning = dictionary(tiny_gpt2, ids), sys.modules["hfsae.train.end_to_end"]._Tuning
    rules = {"tokens": 16 * 128, "batch_size": 4, "context": 32, "learning_rate": 1e-3, "progress": False}
    whole = finetune(tiny_gpt2, ids, sae, **rules)
    step, seen = tuning.step, []

    def stopped_at(self, batch):
        seen.append(self.done)
        if stops and self.done == stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(tuning, "step", stopped_at)
    for _ in range(len(stops)):
        with pytest.raises(KeyboardInterrupt):
            finetune(tiny_gpt2, ids, sae, folder=tmp_path, **rules)
    resumed = finetune(tiny_gpt2, ids, sae, folder=tmp_path, **rules)
    assert len(seen) < 2 * 16
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert torch.equal(whole.statistics.density, resumed.statistics.density)
    with pytest.raises(TrainingError, match=r"learning_rate: 0.001 before, 0.002 now"):
        finetune(tiny_gpt2, ids, sae, folder=tmp_path, **{**rules, "learning_rate": 2e-3})


def test_a_finetuning_saves_when_it_is_asked_to_stop(tiny_gpt2, ids, tmp_path, monkeypatch):
    sae, module = dictionary(tiny_gpt2, ids), sys.modules["hfsae.train.end_to_end"]
    step = module._Tuning.step
    monkeypatch.setattr(module, "_CHECKPOINTS", 1)
    monkeypatch.setattr(
        module._Tuning,
        "step",
        lambda self, batch: (step(self, batch), signal.raise_signal(signal.SIGTERM) if self.done == 5 else None)[0],
    )
    with pytest.raises(SystemExit) as stopped:
        finetune(tiny_gpt2, ids, sae, tokens=2048, batch_size=4, context=32, folder=tmp_path, progress=False)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000000005"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
