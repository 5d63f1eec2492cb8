"""The Triton kernels: their numbers in a process under the interpreter, their machine code by compiling for GPUs."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from polydet.ops import kernels

CASES = Path(__file__).with_name("triton_cases.py")


def test_kernels_compute_the_reference():
    """Natively where there is a GPU, else under the interpreter, which must be chosen before Triton is imported."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    environment["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-W", "ignore", str(CASES)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert re.search(r"\b[4-9]\d passed", run.stdout), run.stdout[-500:]


def compile_for_gpu(kernel, value, block=16, warps=4, capability=90, **constants):
    """Memory instructions, with their counts, of one kernel for values of type ``value``."""
    kernel = kernel.fn
    pointers = {"shapes_ptr": "*i64", "starts_ptr": "*i64", "order_ptr": "*i32", "scale_ptr": "*fp64"}
    pointers |= dict.fromkeys(("reference_ptr", "grad_value_ptr", "grad_reference_ptr", "grad_weight_ptr"), "*fp32")
    if constants.get("FIXED_POINT"):
        pointers["grad_value_ptr"] = "*i64"
    defaults = {"HEADS": 8, "CHANNELS": 32, "LEVELS": 4, "POINTS": 4, "SAMPLES_PADDED": 16, "REFERENCE": 2}
    flags = {"ORDERED": False, "COMPUTE": tl.float32, "NEED_REFERENCE": True, "FIXED_POINT": False, "BLOCK": block}
    constants = defaults | flags | constants
    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name.endswith("_ptr"):
            signature[name] = pointers.get(name, f"*{value}")
            aligned[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr" if name in constants else "i32"
    used = {name: constant for name, constant in constants.items() if name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=used, attrs=aligned)
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return Counter(re.findall(r"\b(?:ld|st|red|atom)\.[\w.:]+", compiled.asm["ptx"]))


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("capability", [80, 90])
def test_corner_rows_are_16_byte_loads(capability):
    corners = 4 * 4  # of the four points of a level, the loop body
    single = compile_for_gpu(kernels.forward_kernel, "fp32", capability=capability)
    assert single["ld.global.v4.b32"] == corners
    half = compile_for_gpu(kernels.forward_kernel, "bf16", block=32, capability=capability)
    assert half["ld.global.v4.b32"] == corners


def test_value_gradient_is_added_without_waiting():
    instructions = compile_for_gpu(kernels.backward_kernel, "fp32")
    assert instructions["red.global.gpu.relaxed.add.v4.f32"] == 16
    assert not any(name.startswith("atom") for name in instructions)


@pytest.mark.parametrize(("value", "reference"), [("fp32", 0), ("fp16", 4)])
def test_deterministic_gradient_is_added_in_integers(value, reference):
    instructions = compile_for_gpu(
        kernels.backward_kernel, value, FIXED_POINT=True, REFERENCE=reference, NEED_REFERENCE=False
    )
    assert any(re.match(r"(red|atom).*add.*(u|s)64", name) for name in instructions)
    assert not any(re.match(r"(red|atom).*f(16|32)", name) for name in instructions)


@pytest.mark.parametrize("channels", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_head_dimension_has_configurations_to_tune(channels, dtype):
    arguments = {"value_ptr": torch.empty(1, dtype=dtype)}
    configs = kernels._fitting_configs(kernels._CONFIGS, arguments, CHANNELS=channels)
    assert 3 <= len(configs) <= 6
    assert len({(config.kwargs["BLOCK"], config.num_warps) for config in configs}) == len(configs)


def test_largest_heads_with_query_order_compile():
    constants = {"CHANNELS": 128, "ORDERED": True, "LEVELS": 5, "SAMPLES_PADDED": 32, "REFERENCE": 4}
    for kernel in (kernels.forward_kernel, kernels.backward_kernel):
        assert compile_for_gpu(kernel, "bf16", block=8, **constants)["ld.global.v4.b32"] >= 16
