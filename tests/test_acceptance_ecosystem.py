"""Attachments beside what others do to a model: adapters, offloading, sharding."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
from attach_cases import dictionary, inputs_for, logits, tiny
from torch.distributed.fsdp import fully_shard

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


def _quantise_with_torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())


def _quantise_with_bitsandbytes(model):
    layers = pytest.importorskip("bitsandbytes").nn
    for block in model.model.layers:
        full = block.mlp.down_proj
        small = layers.Linear4bit(full.in_features, full.out_features, bias=False, compute_dtype=torch.float32)
        small.load_state_dict(full.state_dict())
        block.mlp.down_proj = small.to("cpu")


@pytest.mark.parametrize("quantise", [_quantise_with_torchao, _quantise_with_bitsandbytes])
@pytest.mark.parametrize(
    "place", [{"layer": 1}, {"layer": 1, "site": "mlp_act"}, {"module": "model.layers.1.mlp.down_proj"}]
)
def test_quantised_layers_are_targets_like_others(quantise, place):
    model, inputs = tiny("llama"), inputs_for("llama")
    quantise(model)
    sae = dictionary(d_in=64 if place.get("site") else 32)
    bare = logits(model, inputs)
    with attach(model, sae=sae, **place) as att:
        assert torch.equal(logits(model, inputs), bare)
        with att.steer(3, 5.0) as edit:
            assert not torch.equal(logits(model, inputs), bare)
        assert edit.tokens_changed == 20
        assert type(sae.W_dec.data) is torch.Tensor
    assert torch.equal(logits(model, inputs), bare)


@pytest.mark.parametrize("attach_first", [True, False])
def test_models_with_layers_on_disk_keep_the_dictionary_in_memory(attach_first, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, inputs, sae = tiny("gpt2"), inputs_for("gpt2"), dictionary()
    bare = logits(model, inputs)
    with attach(model, 1, sae=sae) as att, att.ablate(range(64)):
        expected = logits(model, inputs)
    if attach_first:
        att = attach(model, 1, sae=sae)
    accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    assert model.transformer.h[1].mlp.c_fc.weight.is_meta
    if not attach_first:
        att = attach(model, 1, sae=sae)
    with att.ablate(range(64)):
        torch.testing.assert_close(logits(model, inputs), expected)
    assert sae.W_enc.device.type == "cpu"
    att.detach()
    assert torch.equal(logits(model, inputs), bare)


def test_a_model_loaded_over_memory_and_disk_is_attached_to_like_others(tmp_path):
    pytest.importorskip("accelerate")
    model, inputs, sae = tiny("llama"), inputs_for("llama"), dictionary()
    model.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    loaded = (
        type(model)
        .from_pretrained(
            tmp_path / "model",
            device_map={**places, "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"},
            offload_folder=tmp_path / "offloaded",
        )
        .eval()
    )
    for layer in range(3):
        with attach(model, layer, sae=sae) as att, att.steer(3, 5.0):
            expected = logits(model, inputs)
        with attach(loaded, layer, sae=sae, force=True) as att, att.steer(3, 5.0) as edit:
            torch.testing.assert_close(logits(loaded, inputs), expected, atol=1e-5, rtol=1e-5)
        assert edit.tokens_changed == 20
    torch.testing.assert_close(logits(loaded, inputs), logits(model, inputs))


@pytest.fixture
def group_of_one(tmp_path):
    """This process alone, as torch.distributed sees it."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("attach_first", [True, False])
def test_models_that_train_in_parallel_are_edited_and_get_the_same_gradients(attach_first):
    inputs, sae = inputs_for("gpt2"), dictionary()

    def gradients(model, edit):
        with edit:
            model(**inputs).logits.square().mean().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    reference = tiny("gpt2")
    with attach(reference, 1, sae=sae) as att:
        expected = gradients(reference, att.ablate(range(64)))
    model = tiny("gpt2")
    bare = logits(model, inputs)
    att = attach(model, 1, sae=sae) if attach_first else None
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    att = att or attach(parallel, 1, sae=sae)
    for one, other in zip(gradients(parallel, att.ablate(range(64))), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert attachments(parallel) == [att]
    att.detach()
    assert torch.equal(logits(parallel, inputs), bare)


@pytest.mark.usefixtures("group_of_one")
def test_sharded_models_equal_the_whole_one():
    assert all(_sharded_outcomes())


def _sharded_outcomes():
    """Say of each claim about a sharded model whether it holds, attached to before and after sharding."""
    inputs, sae = inputs_for("llama"), dictionary()
    reference = tiny("llama")
    with attach(reference, 1, sae=sae) as att, att.splice():
        expected = logits(reference, inputs)
    for attach_first in (True, False):
        model = tiny("llama")
        att = attach(model, 1, sae=sae) if attach_first else None
        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
        att = att or attach(model, 1, sae=sae)
        with att.splice():
            yield torch.allclose(logits(model, inputs), expected, atol=1e-5)
        att.detach()
        yield type(model.model.layers[1]).__name__.startswith("FSDP")
    yield type(sae.W_dec.data) is torch.Tensor


def _shard(rank, port, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results.put(list(_sharded_outcomes()))
    dist.destroy_process_group()


@pytest.mark.slow
def test_models_sharded_over_two_processes_equal_the_whole_one():
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
