"""The small kernels compile for the cards they are written for, without one of them, and fit their shared memory."""

import os

import pytest

triton = pytest.importorskip("triton", exc_type=ImportError)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from srnas_fast.kernels import merge_kernels, shuffle_concat, simplex_project, weighted_sum  # noqa: E402

SHARED_BYTES = 48 * 1024
ANY = ("i32",) * 4
NCHW = ("i32", "i32", "i32", 1)
CHANNELS_LAST = ("i32", 1, "i32", "i32")
CHANNELS_FIRST = (1, "i32", "i32", "i32")  # channels_last with the dimensions in the order of weighted_sum

SIMPLEX = dict(choices="i32", radius_step=1, radius_ptr="*fp64")
MERGE = dict(SIZE=7, SIZES=(3, 5, 3), DILATIONS=(1, 1, 3), BLOCK=merge_kernels.BLOCK, entries="i32", inputs="i32")
MERGE |= dict(merged_strides=ANY, dmerged_strides=ANY, kernel_strides=3 * NCHW, dkernel_strides=3 * ANY)
MERGE |= dict(weights_ptr="*fp32", weights_stride=1, partial_ptr="*fp32", ACCUMULATE=False)
PLANAR = dict(sizes=("i32", 1, "i32", "i32"), weights_strides=("i32", 1), shift_stride=1, centres_strides=("i32", 1))
PLANAR |= dict(weights_ptr="*fp32", shift_ptr="*fp32", centres_ptr="*fp32", CHANNELS=1, LAST=1024)
PIXELS = PLANAR | dict(sizes=("i32", 1, 1, "i32"), CHANNELS=32, LAST=32)
SHUFFLE = dict(shape=ANY, scale_ptr="*fp32", partial_ptr="*fp32", GROUPS=4)

VARIANTS = {
    "simplex, float32": (
        simplex_project._forward,
        dict(weights_ptr="*fp32", logits_ptr="*fp32", AS_PUBLISHED=False, BLOCK=8, LINES=8) | SIMPLEX,
    ),
    "simplex backward, float64": (
        simplex_project._backward,
        dict(dlogits_ptr="*fp64", dweights_ptr="*fp64", logits_ptr="*fp64", AS_PUBLISHED=True, BLOCK=64, LINES=64)
        | SIMPLEX,
    ),
    "merge, float32": (merge_kernels._merge, dict(merged_ptr="*fp32", kernel_ptrs=("*fp32",) * 3) | MERGE),
    "merge backward, bfloat16": (
        merge_kernels._merge_backward,
        dict(dmerged_ptr="*bf16", kernel_ptrs=("*bf16",) * 3, dkernel_ptrs=("*bf16",) * 3) | MERGE,
    ),
    "weighted sum, float32": (
        weighted_sum._forward,
        dict(y_ptr="*fp32", z_ptrs=("*fp32",) * 3, y_strides=NCHW, z_strides=(NCHW,) * 3, ACCUMULATE=True) | PLANAR,
    ),
    "weighted sum, bfloat16, channels_last": (
        weighted_sum._forward,
        PIXELS
        | dict(y_ptr="*bf16", z_ptrs=("*bf16",) * 8, y_strides=CHANNELS_FIRST, z_strides=(CHANNELS_FIRST,) * 8)
        | dict(shift_ptr=None, centres_ptr=None, ACCUMULATE=False),
    ),
    "weighted sum backward, float32": (
        weighted_sum._backward,
        PLANAR
        | dict(dy_ptr="*fp32", z_ptrs=("*fp32",) * 2, dz_ptrs=("*fp32", None), products_ptr="*fp32", sums_ptr="*fp32")
        | dict(dy_strides=NCHW, z_strides=(NCHW, ANY), dz_strides=(NCHW, ANY)),
    ),
    "weighted sum backward, bfloat16, channels_last": (
        weighted_sum._backward,
        PIXELS
        | dict(dy_ptr="*bf16", z_ptrs=("*bf16",) * 8, dz_ptrs=("*bf16",) * 8, products_ptr="*fp32", sums_ptr=None)
        | dict(dy_strides=CHANNELS_FIRST, z_strides=(CHANNELS_FIRST,) * 8, dz_strides=(CHANNELS_FIRST,) * 8),
    ),
    "shuffle, float32": (
        shuffle_concat._forward,
        dict(out_ptr="*fp32", y_ptr="*fp32", x_ptr="*fp32", CHANNELS=4, PIXELS=256, STRIDE=1)
        | dict(out_strides=NCHW, y_strides=NCHW, x_strides=NCHW)
        | SHUFFLE,
    ),
    "shuffle backward, float32, stride 2": (
        shuffle_concat._backward,
        dict(dy_ptr="*fp32", dx_ptr="*fp32", dout_ptr="*fp32", x_ptr="*fp32", CHANNELS=1, PIXELS=1024, STRIDE=2)
        | dict(dy_strides=NCHW, dx_strides=NCHW, dout_strides=NCHW, x_strides=NCHW)
        | SHUFFLE,
    ),
    "shuffle backward, bfloat16, channels_last, stride 2": (
        shuffle_concat._backward,
        dict(dy_ptr="*bf16", dx_ptr="*bf16", dout_ptr="*bf16", x_ptr="*bf16", CHANNELS=64, PIXELS=16, STRIDE=2)
        | dict(dy_strides=CHANNELS_LAST, dx_strides=CHANNELS_LAST, dout_strides=CHANNELS_LAST)
        | dict(x_strides=CHANNELS_LAST)
        | SHUFFLE,
    ),
}


def source(kernel, given):
    """Of each argument ``given`` its type, a string, or its value, where that is known when the kernel is compiled."""
    known = {}

    def kind(value, path):
        if isinstance(value, str):
            return value
        if isinstance(value, tuple) and not kernel.params[path[0]].is_constexpr:
            return tuple(kind(item, (*path, i)) for i, item in enumerate(value))
        known[path] = value
        return "constexpr"

    signature = {name: kind(given[name], (i,)) for i, name in enumerate(kernel.arg_names)}
    return ASTSource(kernel, signature, known)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 80, 86, 90, 120])
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiles(variant, capability):
    compiled = triton.compile(
        source(*VARIANTS[variant]), target=GPUTarget("cuda", capability, 32), options={"num_warps": 4}
    )
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED_BYTES


def test_simplex_rounds_every_product():
    options = {"num_warps": 4, "enable_fp_fusion": False}  # as its launchers ask for
    compiled = triton.compile(
        source(*VARIANTS["simplex backward, float64"]), target=GPUTarget("cuda", 90, 32), options=options
    )
    assert "fma" not in compiled.asm["ptx"] and ".f32" not in compiled.asm["ptx"]
