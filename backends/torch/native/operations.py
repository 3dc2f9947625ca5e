"""The operations of torch's graphs that native kernels know, and how a vector of values is computed with each."""

from __future__ import annotations

import operator
from typing import Any

import torch

aten, prims = torch.ops.aten, torch.ops.prims

CONSTANTS: frozenset[Any] = frozenset({aten.full.default, aten.scalar_tensor.default})
"""One number for all places."""
SAME: frozenset[Any] = frozenset({aten.alias.default, aten.clone.default, aten.detach.default})
"""What gives its operand back."""
VIEWS: frozenset[Any] = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.permute.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.expand.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.alias.default,
    }
)
"""What only looks at its operand in another way."""

POINTWISE: dict[Any, str] = {
    aten.add.Tensor: "{0} + {1}",
    aten.add.Scalar: "{0} + {1}",
    aten.sub.Tensor: "{0} - {1}",
    aten.sub.Scalar: "{0} - {1}",
    aten.mul.Tensor: "{0} * {1}",
    aten.mul.Scalar: "{0} * {1}",
    aten.div.Tensor: "{0} / {1}",
    aten.div.Scalar: "{0} / {1}",
    aten.neg.default: "{0}.neg()",
    aten.abs.default: "{0}.abs()",
    aten.sign.default: "sign_of({0})",
    aten.exp.default: "exponential_of({0})",
    aten.log.default: "{0}.log()",
    aten.log1p.default: "{0}.log1p()",
    aten.expm1.default: "{0}.expm1()",
    aten.sqrt.default: "{0}.sqrt()",
    aten.rsqrt.default: "{0}.rsqrt()",
    aten.reciprocal.default: "{0}.reciprocal()",
    aten.tanh.default: "{0}.tanh()",
    aten.erf.default: "{0}.erf()",
    aten.sin.default: "{0}.sin()",
    aten.cos.default: "{0}.cos()",
    aten.sigmoid.default: "sigmoid_of({0})",
    aten.relu.default: "at::vec::maximum({0}, Vec(T(0)))",
    aten.maximum.default: "at::vec::maximum({0}, {1})",
    aten.minimum.default: "at::vec::minimum({0}, {1})",
    aten.clamp_min.default: "at::vec::maximum({0}, {1})",
    aten.clamp_max.default: "at::vec::minimum({0}, {1})",
    aten.pow.Tensor_Scalar: "{0}.pow({1})",
    aten.where.self: "Vec::blendv({2}, {1}, {0})",
    aten.gt.Scalar: "{0} > {1}",
    aten.gt.Tensor: "{0} > {1}",
    aten.ge.Scalar: "{0} >= {1}",
    aten.ge.Tensor: "{0} >= {1}",
    aten.lt.Scalar: "{0} < {1}",
    aten.lt.Tensor: "{0} < {1}",
    aten.le.Scalar: "{0} <= {1}",
    aten.le.Tensor: "{0} <= {1}",
    aten.eq.Scalar: "{0} == {1}",
    aten.eq.Tensor: "{0} == {1}",
    aten.ne.Scalar: "{0} != {1}",
    aten.ne.Tensor: "{0} != {1}",
    aten.logical_and.default: "{0} & {1}",
    aten.bitwise_and.Tensor: "{0} & {1}",
    aten.logical_or.default: "{0} | {1}",
    aten.bitwise_or.Tensor: "{0} | {1}",
    aten.logical_not.default: "opposite({0})",
    aten.bitwise_not.default: "opposite({0})",
    prims.convert_element_type.default: "",  # by the kinds of what goes in and what comes out
}
"""The C++ of one vector; a truth value is a mask, all bits of its place."""

OF_TRUTHS: frozenset[Any] = frozenset(
    {
        aten.where.self,
        aten.logical_and.default,
        aten.bitwise_and.Tensor,
        aten.logical_or.default,
        aten.bitwise_or.Tensor,
        aten.logical_not.default,
        aten.bitwise_not.default,
        prims.convert_element_type.default,
    }
)
"""What takes truth values; all else would count with the bits of a mask."""

FUNCTIONS = ("exp", "log", "sigmoid", "tanh", "erf", "sin", "cos", "sqrt", "pow", "/")
"""What takes the time of several operations."""
GETITEM = operator.getitem


def is_view(target: Any) -> bool:
    """Whether an operation computes nothing."""
    return target in VIEWS
