"""The kernels of depthwise convolutions and their separable sums compile for every card Triton serves."""

import os

import pytest

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from srnas_fast.kernels import multi_depthwise, separable_sum

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="needs a process without TRITON_INTERPRET"),
]

SHAPE = ("i32",) * 4
PLAN = {"SIZES": (3, 5), "DILATIONS": (1, 2), "STRIDE": 1, "INDEX": tl.int32}
VARIANTS = [("*fp32", "NCHW"), ("*bf16", "channels_last")]


def compile_kernel(kernel, arguments, constants, capability, num_warps=4):
    """Compiles for a capability; a stride of None among the arguments is the 1 that launches specialise on."""
    ones = {}

    def signature(value, path):
        if isinstance(value, tuple):
            return tuple(signature(item, (*path, number)) for number, item in enumerate(value))
        if value is None:
            ones[path] = 1
            return "constexpr"
        return value

    types = {name: signature(value, (kernel.arg_names.index(name),)) for name, value in arguments.items()}
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature=types, constexprs={**constants, **ones})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
    assert compiled.asm["ptx"]
    assert compiled.metadata.shared <= 48 * 1024


@pytest.fixture(params=[75, 80, 86, 90, 120])
def capability(request):
    return request.param


@pytest.fixture(params=VARIANTS, ids=["float32 NCHW", "bfloat16 channels_last"])
def variant(request):
    """The type of images' pointers and their strides."""
    pointer, layout = request.param
    return pointer, ("i32", None, "i32", "i32") if layout == "channels_last" else ("i32", "i32", "i32", None)


def test_depthwise_outputs(variant, capability):
    image, strides = variant
    arguments = {"outputs": (image,) * 2, "x": image, "kernels": "*fp32", "x_shape": SHAPE}
    arguments |= {"x_strides": strides, "strides": strides}
    blocks = {"BLOCK_C": 32, "BLOCK_P": 32} if strides[1] is None else {"BLOCK_C": 1, "BLOCK_P": 1024}
    compile_kernel(multi_depthwise._outputs, arguments, PLAN | blocks, capability)


def test_depthwise_input_gradient(variant, capability):
    image, strides = variant
    arguments = {"dx": image, "dys": (image,) * 2, "kernels": "*fp32", "shape": SHAPE, "strides": strides}
    arguments |= {"dy_shape": SHAPE, "dy_strides": (strides,) * 2}
    blocks = {"BLOCK_C": 32, "BLOCK_P": 32} if strides[1] is None else {"BLOCK_C": 1, "BLOCK_P": 1024}
    compile_kernel(multi_depthwise._input_gradient, arguments, PLAN | {"STRIDE": 2} | blocks, capability)


def test_depthwise_kernel_gradients(variant, capability):
    image, strides = variant
    arguments = {"partials": "*fp32", "dys": (image,) * 2, "x": image, "shape": SHAPE, "strides": strides}
    arguments |= {"dy_strides": (strides,) * 2, "programs": "i32"}
    channels = 8 if strides[1] is None else 1
    blocks = {"BLOCK_C": channels, "BLOCKS_T": (16, 32), "BLOCKS_P": (256 // channels, 128 // channels)}
    compile_kernel(multi_depthwise._kernel_gradients, arguments, PLAN | blocks, capability)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_separable_sum(variant, precision, capability):
    image, strides = variant
    arguments = {"y": image, "x": image, "kernels": "*fp32", "pointwise": "*fp32", "shift": "*fp32"}
    arguments |= {"centres": "*fp32", "shape": SHAPE, "strides": strides, "x_shape": SHAPE, "x_strides": strides}
    constants = PLAN | {"ACCUMULATE": True, "PRECISION": precision, "BLOCK_O": 64, "BLOCK_C": 16, "BLOCK_P": 32}
    compile_kernel(separable_sum._sum, arguments, constants, capability)


def test_separable_sum_without_shift_and_centres(capability):
    image, strides = "*fp32", ("i32", "i32", "i32", None)
    arguments = {"y": image, "x": image, "kernels": "*fp32", "pointwise": "*fp32"}
    arguments |= {"shape": SHAPE, "strides": strides, "x_shape": SHAPE, "x_strides": strides}
    constants = PLAN | {"shift": None, "centres": None, "ACCUMULATE": False, "PRECISION": "ieee"}
    constants |= {"BLOCK_O": 16, "BLOCK_C": 16, "BLOCK_P": 32}
    compile_kernel(separable_sum._sum, arguments, constants, capability)


def test_sums_of_depthwise_outputs(variant, capability):
    image, strides = variant
    arguments = {"sums": "*fp32", "x": image, "kernels": "*fp32", "shape": SHAPE, "strides": strides}
    blocks = {"BLOCK_C": 16, "BLOCK_P": 64}
    compile_kernel(separable_sum._sums, arguments | {"programs": "i32"}, PLAN | blocks, capability)


@pytest.mark.parametrize("channels, warps", [(32, 4), (64, 8)])
def test_products_of_depthwise_outputs(variant, channels, warps, capability):
    image, strides = variant
    arguments = {"products": "*fp32", "x": image, "kernels": "*fp32", "centres": "*fp32", "shape": SHAPE}
    arguments |= {"strides": strides, "programs": "i32"}
    constants = PLAN | {"PRECISION": "tf32", "BLOCK_C": channels, "BLOCK_P": 16}
    compile_kernel(separable_sum._products, arguments, constants, capability, warps)
