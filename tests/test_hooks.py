"""Reading and replacing activations at modules."""

import pytest
import torch
from attach_cases import traces
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from hfsae.errors import InvalidValue, SiteNotFound
from hfsae.hooks import activation_of_output, add_stage, capture, input_key, remove_stage, with_output
from hfsae.sites import resolve


def test_capture_reads_several_points_and_leaves_nothing_behind(tiny_model, ids):
    before = traces(tiny_model)
    points = [resolve(tiny_model, 1), resolve(tiny_model, 2, "resid_pre"), resolve(tiny_model, 0)]
    one, same, first = capture(tiny_model, points, input_ids=ids)
    assert one.shape == (2, 12, 32)
    assert torch.equal(one, same)
    assert not torch.equal(one, first)
    assert not one.requires_grad
    assert traces(tiny_model) == before
    assert capture(tiny_model, [], input_ids=ids) == []


def test_capture_stops_after_the_last_point(tiny_gpt2, ids):
    ran = []
    for index, block in enumerate(tiny_gpt2.transformer.h):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    capture(tiny_gpt2, [resolve(tiny_gpt2, 0)], input_ids=ids)
    assert ran == []
    capture(tiny_gpt2, [resolve(tiny_gpt2, 1)], input_ids=ids)
    assert ran == [0]


def test_capture_of_a_module_that_does_not_run_is_refused(tiny_gpt2, ids):
    tiny_gpt2.extra = nn.Linear(32, 32)
    with pytest.raises(SiteNotFound, match="extra did not run"):
        capture(tiny_gpt2, [resolve(tiny_gpt2, module="extra")], input_ids=ids)


@pytest.mark.parametrize("io", ["output", "input"])
def test_stages_run_in_order_and_leave(io):
    class Plus:
        def __init__(self, by):
            self.by = by

        def act(self, x):
            return x * 2 + self.by

    module, x = nn.Identity(), torch.ones(3)
    one, two = Plus(1), Plus(5)
    add_stage(module, io, one)
    add_stage(module, io, two)
    assert torch.equal(module(x), (x * 2 + 1) * 2 + 5)
    remove_stage(module, io, one)
    assert torch.equal(module(x), x * 2 + 5)
    remove_stage(module, io, two)
    remove_stage(module, io, two)
    assert module(x) is x
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_every_kind_of_output_keeps_its_kind():
    x, y = torch.zeros(2), torch.ones(2)
    outputs = [x, (x, 3), [x, 3], BaseModelOutput(last_hidden_state=x, hidden_states=(x,))]
    for output in outputs:
        replaced = with_output(output, y)
        assert type(replaced) is type(output)
        assert activation_of_output(replaced, nn.Identity()) is y
        assert activation_of_output(output, nn.Identity()) is x
    with pytest.raises(InvalidValue, match="does not begin with a tensor"):
        activation_of_output({"a": x}, nn.Identity())


def test_the_input_is_the_first_tensor():
    x = torch.zeros(2)
    assert input_key((x,), {}, nn.Identity()) == 0
    assert input_key((), {"mask": x, "hidden_states": x}, nn.Identity()) == "hidden_states"
    assert input_key((), {"flag": 1, "x": x}, nn.Identity()) == "x"
    with pytest.raises(InvalidValue, match="without a tensor"):
        input_key((3,), {}, nn.Identity())
