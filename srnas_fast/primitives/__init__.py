"""One file per primitive: reference in plain torch, custom op, autograd, FLOP formula."""

from srnas_fast.primitives.channel_moments import channel_moments
from srnas_fast.primitives.merge_kernels import merge_kernels
from srnas_fast.primitives.multi_depthwise import multi_depthwise
from srnas_fast.primitives.narrow_convolution import (
    narrow_convolution,
    narrow_convolution_backward,
    narrow_convolution_moments,
)
from srnas_fast.primitives.pool import pool, pool_backward
from srnas_fast.primitives.separable_gradient import separable_gradient, separable_gradient_
from srnas_fast.primitives.separable_moments import separable_moments
from srnas_fast.primitives.separable_sum import separable_sum, separable_sum_
from srnas_fast.primitives.shuffle_concat import shuffle_concat, shuffle_concat_backward
from srnas_fast.primitives.simplex_project import simplex_project
from srnas_fast.primitives.weighted_sum import weighted_sum, weighted_sum_, weighted_sum_backward

__all__ = [
    "channel_moments",
    "merge_kernels",
    "multi_depthwise",
    "narrow_convolution",
    "narrow_convolution_backward",
    "narrow_convolution_moments",
    "pool",
    "pool_backward",
    "separable_gradient",
    "separable_gradient_",
    "separable_moments",
    "separable_sum",
    "separable_sum_",
    "shuffle_concat",
    "shuffle_concat_backward",
    "simplex_project",
    "weighted_sum",
    "weighted_sum_",
    "weighted_sum_backward",
]
