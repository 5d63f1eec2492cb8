"""The operators under compile, export, checkpointing, autocast and functional_call; dispatch; errors."""

import pytest
import torch
from msda_inputs import Problem
from torch.utils.checkpoint import checkpoint

from polydet import ops
from polydet.ops import MultiScaleDeformableAttention, backend, ms_deform_attn, set_backend, use_backend
from polydet.ops.library import backward_op, forward_op

SHAPES = ((3, 4), (2, 2))


def operator_arguments(reference):
    problem = Problem(SHAPES, reference=reference)
    tensors = [tensor.requires_grad_() for tensor in problem.inputs()]
    if not reference:
        tensors.insert(1, None)
    return (tensors[0], torch.tensor(SHAPES), torch.tensor((0, 12)), *tensors[1:], None)


@pytest.mark.parametrize("reference", [0, 2, 4])
def test_operators_obey_the_rules_of_torch_library(reference):
    arguments = operator_arguments(reference)
    torch.library.opcheck(forward_op, (*arguments, None, "auto"))
    detached = [None if tensor is None else tensor.detach() for tensor in arguments]
    grad = forward_op(*detached, None, "auto")
    torch.library.opcheck(backward_op, (grad, *detached, bool(reference), None, "auto"))


def attention_inputs(batch=2, queries=5, numbers=2):
    torch.manual_seed(0)
    tokens = sum(height * width for height, width in SHAPES)
    return (
        torch.randn(batch, queries, 16),
        torch.rand(batch, queries, len(SHAPES), numbers),
        torch.randn(batch, tokens, 16),
    )


@pytest.fixture
def attention():
    torch.manual_seed(1)
    module = MultiScaleDeformableAttention(16, num_heads=2, num_levels=2, num_points=3)
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.1)
    torch.nn.init.normal_(module.attention_weights.weight, std=0.1)
    return module


def gradients(module, call, inputs):
    module.zero_grad()
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = call(*inputs)
    output.square().sum().backward()
    return [output.detach(), *(tensor.grad for tensor in inputs), *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("shapes", [SHAPES, torch.tensor(SHAPES)], ids=["pairs", "tensor"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(attention, shapes, dynamic):
    inputs = attention_inputs()
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    expected = gradients(attention, lambda *tensors: attention(*tensors, shapes), inputs)
    result = gradients(attention, lambda *tensors: compiled(*tensors, shapes), inputs)
    for pair in zip(result, expected):
        torch.testing.assert_close(*pair)


def test_compiled_for_one_size_serves_another(attention):
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True, dynamic=True)
    for queries in (5, 9, 3):
        inputs = attention_inputs(queries=queries)
        torch.testing.assert_close(compiled(*inputs, SHAPES), attention(*inputs, SHAPES))


def test_exports(attention):
    inputs = attention_inputs()
    shapes = torch.tensor(SHAPES)
    program = torch.export.export(attention, (*inputs, shapes))
    assert any("polydet.ms_deform_attn" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*inputs, shapes), attention(*inputs, shapes))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_repeats_the_gradients(attention, reentrant):
    inputs = attention_inputs(numbers=4)

    def recomputed(*tensors):
        return checkpoint(attention, *tensors, SHAPES, use_reentrant=reentrant)

    expected = gradients(attention, lambda *tensors: attention(*tensors, SHAPES), inputs)
    for pair in zip(gradients(attention, recomputed, inputs), expected):
        torch.testing.assert_close(*pair, rtol=0, atol=0)


def test_autocast(attention):
    inputs = attention_inputs()
    expected = gradients(attention, lambda *tensors: attention(*tensors, SHAPES), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        result = gradients(attention, lambda *tensors: attention(*tensors, SHAPES), inputs)
    assert result[0].dtype == torch.bfloat16
    for single, half in zip(expected, result):
        assert (half - single).norm() <= 0.03 * single.norm()


def test_functional_call(attention):
    inputs = attention_inputs()
    doubled = {name: parameter * 2 for name, parameter in attention.named_parameters()}
    result = torch.func.functional_call(attention, doubled, (*inputs, SHAPES))
    attention.load_state_dict(doubled)
    torch.testing.assert_close(result, attention(*inputs, SHAPES))


def test_shapes_met_in_inference_mode_serve_training(attention):
    shapes = ((4, 3), (1, 4))  # not met before: these tensors are made and cached in inference mode
    inputs = attention_inputs()
    with torch.inference_mode():
        attention(*inputs, shapes)
    assert attention(*inputs, shapes).sum().backward() is None


def test_backend_says_what_runs():
    assert backend() == backend("cpu") == "cpu"
    assert backend("cuda") == "triton"
    assert backend("meta") == "reference"
    with use_backend("reference"):
        assert backend("cuda") == "reference"
    assert backend("cuda") == "triton"
    with pytest.raises(ValueError, match="backend 'cuda' is not one of auto, triton, cpu, reference"):
        set_backend("cuda")


def test_forced_backend_is_the_one_that_runs(monkeypatch):
    problem = Problem(SHAPES)
    inputs = problem.inputs(torch.float32)

    def fail(*args):
        raise AssertionError("the CPU path ran")

    monkeypatch.setattr(ops.cpu, "forward", fail)
    problem.call(inputs, "reference")
    with pytest.raises(AssertionError, match="the CPU path ran"):
        problem.call(inputs, "auto")


def test_triton_on_cpu_tensors_is_an_error_not_a_fallback():
    problem = Problem(SHAPES)
    with pytest.raises(RuntimeError, match="need CUDA tensors"):
        problem.call(problem.inputs(torch.float32), "triton")


def test_second_derivatives_are_refused_outside_the_reference():
    problem = Problem(SHAPES)
    inputs = [tensor.requires_grad_() for tensor in problem.inputs()]
    for name, refused in (("reference", False), ("cpu", True)):
        output = problem.call(inputs, name)
        (gradient,) = torch.autograd.grad(output.square().sum(), inputs[:1], create_graph=True)
        if refused:
            with pytest.raises(RuntimeError):
                torch.autograd.grad(gradient.sum(), inputs[1])
        else:
            assert torch.autograd.grad(gradient.sum(), inputs[1])[0].any()


def test_meta_tensors_need_no_memory():
    meta = [tensor.to("meta") for tensor in Problem(SHAPES).inputs()]
    with torch.device("meta"):
        output = forward_op(meta[0], torch.zeros(2, 2), torch.zeros(2), None, *meta[1:], None, None, "auto")
    assert output.shape == (2, 7, 16) and output.is_meta


def test_mixed_dtypes_under_autocast_keep_the_value_dtype():
    value, locations, weights = Problem(SHAPES).inputs(torch.float32)
    output = ms_deform_attn(value.bfloat16(), SHAPES, None, locations, weights.half())
    assert output.dtype == torch.bfloat16
