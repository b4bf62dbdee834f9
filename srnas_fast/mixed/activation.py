"""The activations of candidates: run once for all that share one, backward in place where the result is enough."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srnas_fast.mixed.layers import Sine


def shared_by(activation: nn.Module | None) -> tuple:
    """A key that is equal for activations that compute the same."""
    if isinstance(activation, nn.PReLU):
        return nn.PReLU, id(activation)  # its slope is learned
    if isinstance(activation, nn.LeakyReLU):
        return nn.LeakyReLU, activation.negative_slope
    return (type(activation),)


def result_suffices(activation: nn.Module | None) -> bool:
    """Whether the gradient needs the result only, not the input: then the input may be overwritten."""
    if isinstance(activation, nn.LeakyReLU):
        return activation.negative_slope > 0  # the result has the sign of the input
    return activation is None or isinstance(activation, nn.ReLU)


def activate(activation: nn.Module | None, x: Tensor, slope: Tensor | None, overwrite: bool = False) -> Tensor:
    """The activation of x, in place with ``overwrite`` if the result suffices; ``slope``: the parameter of a PReLU."""
    if activation is None:
        return x
    overwrite = overwrite and result_suffices(activation)
    if isinstance(activation, nn.ReLU):
        return F.relu(x, overwrite)
    if isinstance(activation, nn.LeakyReLU):
        return F.leaky_relu(x, activation.negative_slope, overwrite)
    if isinstance(activation, nn.PReLU):
        return F.prelu(x, slope)
    assert isinstance(activation, Sine)
    return x.sin()


def activation_gradient(
    activation: nn.Module | None, x: Tensor, a: Tensor, slope: Tensor | None, da: Tensor, slope_wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x and of a PReLU's slope from that of the result ``a``; overwrites ``da``.

    ``x`` is read only where the result does not suffice. At a kink, where the derivative is a matter of choice, it is
    torch's choice.
    """
    if activation is None:
        return da, None
    if isinstance(activation, nn.ReLU):
        return torch.ops.aten.threshold_backward.grad_input(da, a, 0, grad_input=da), None
    if isinstance(activation, nn.LeakyReLU):
        result = result_suffices(activation)
        arguments = (a if result else x, activation.negative_slope, result)
        return torch.ops.aten.leaky_relu_backward.grad_input(da, *arguments, grad_input=da), None
    if isinstance(activation, Sine):
        return da.mul_(x.cos()), None
    with torch.enable_grad():
        x, slope = x.detach().requires_grad_(), slope.detach().requires_grad_(slope_wanted)
        found = torch.autograd.grad(F.prelu(x, slope), [x, slope] if slope_wanted else [x], da)
    return found[0], found[1] if slope_wanted else None
