"""Attachments beside what others do to a model: adapters, offloading, sharding."""

import pytest
import torch
from attach_cases import dictionary, inputs_for, logits, tiny

from hfsae.attach import attach, attachments
from hfsae.errors import HfsaeWarning

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def lora(model, target):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(target_modules=[target], init_lora_weights=False, fan_in_fan_out=True))


@pytest.mark.parametrize("attach_first", [True, False])
def test_adapters_before_and_after(attach_first):
    inputs, sae = inputs_for("gpt2"), dictionary()
    if attach_first:
        model = tiny("gpt2")
        att = attach(model, 1, sae=sae)
        peft = lora(model, "c_attn").eval()
    else:
        peft = lora(tiny("gpt2"), "c_attn").eval()
        att = attach(peft, 1, sae=sae)
    assert att.live
    bare = logits(peft, inputs)
    with att.splice():
        spliced = logits(peft, inputs)
    assert not torch.equal(spliced, bare)
    assert len(attachments(peft)) == 1
    merged = peft.merge_and_unload()
    with att.splice():
        torch.testing.assert_close(logits(merged, inputs), spliced, atol=1e-4, rtol=1e-4)
    att.detach()
    torch.testing.assert_close(logits(merged, inputs), bare, atol=1e-4, rtol=1e-4)


def test_an_adapter_on_the_very_module_is_noticed():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    att = attach(model, module="transformer.h.1.mlp.c_proj", sae=dictionary())
    block = attach(model, 1, sae=dictionary())
    peft = lora(model, "mlp.c_proj").eval()
    assert not att.live
    assert block.live
    with pytest.warns(HfsaeWarning, match="was replaced"):
        logits(peft, inputs)
    att.detach()
    block.detach()


@pytest.mark.parametrize("attach_first", [True, False])
def test_offloaded_models_keep_the_dictionary_where_it_is(attach_first):
    accelerate = pytest.importorskip("accelerate")
    model, inputs, sae = tiny("gpt2"), inputs_for("gpt2"), dictionary()
    bare = logits(model, inputs)
    with attach(model, 1, sae=sae) as att, att.splice():
        expected = logits(model, inputs)
    if attach_first:
        att = attach(model, 1, sae=sae)
    accelerate.cpu_offload(model, execution_device="cpu")
    if not attach_first:
        att = attach(model, 1, sae=sae)
    with att.splice():
        torch.testing.assert_close(logits(model, inputs), expected)
    assert sae.W_enc.device.type == "cpu"
    att.detach()
    assert torch.equal(logits(model, inputs), bare)


def test_quantised_layers_are_targets_like_others():
    torchao = pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    assert torchao
    model, inputs, sae = tiny("llama"), inputs_for("llama"), dictionary()
    quantize_(model, Int8WeightOnlyConfig())
    bare = logits(model, inputs)
    with attach(model, 1, sae=sae) as att:
        assert torch.equal(logits(model, inputs), bare)
        with att.ablate(range(16)):
            assert not torch.equal(logits(model, inputs), bare)
        assert type(sae.W_dec.data) is torch.Tensor
    assert torch.equal(logits(model, inputs), bare)


def _shard(rank, port, results):
    import os

    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    inputs, sae = inputs_for("llama"), dictionary()
    reference = tiny("llama")
    with attach(reference, 1, sae=sae) as att, att.splice():
        expected = logits(reference, inputs)
    outcomes = []
    for attach_first in (True, False):
        model = tiny("llama")
        att = attach(model, 1, sae=sae) if attach_first else None
        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
        att = att or attach(model, 1, sae=sae)
        with att.splice():
            outcomes.append(torch.allclose(logits(model, inputs), expected, atol=1e-5))
        att.detach()
        outcomes.append(type(model.model.layers[1]).__name__.startswith("FSDP"))
    outcomes.append(type(sae.W_dec.data) is torch.Tensor)
    results.put(outcomes)
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_models_equal_the_whole_one():
    import socket

    context = torch.multiprocessing.get_context("spawn")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    results = context.Queue()
    workers = [context.Process(target=_shard, args=(rank, port, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    assert all(all(outcome) for outcome in outcomes)
