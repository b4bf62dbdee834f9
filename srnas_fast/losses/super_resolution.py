"""The loss of the super-resolution search and of its retraining."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from srnas_fast.errors import InputError, require_number
from srnas_fast.losses.hfen import hfen


@dataclass
class SuperResolutionLoss:
    """``l1 * L1 + hfen * HFEN``, with L1 in gray levels, on images of the [0, 1] scale.

    A gray level is 1/255, so that the weights mean what they mean on the [0, 255] scale of DLSR (arXiv 2105.03939),
    which takes 1 and 0.2; HFEN has no unit.

    Args:
        l1: weight of the mean absolute error in gray levels, a number from 0 up.
        hfen: weight of the high-frequency error norm, a number from 0 up.

    Raises:
        InputError: a weight is negative or not finite, or both are 0; when called, shapes differ or, with ``hfen``
            above 0, images are under 7 pixels a side.

    >>> clean = torch.full((1, 3, 8, 8), 0.5)
    >>> round(SuperResolutionLoss()(clean + 2 / 255, clean).item(), 4)  # constant images have no edges
    2.0
    """

    l1: float = 1.0
    hfen: float = 0.2

    def __post_init__(self) -> None:
        require_number(self, "loss.", above=[], least=["l1", "hfen"])
        if not (self.l1 or self.hfen):
            raise InputError("both loss weights are 0: nothing would be learnt; give l1 or hfen a number above 0")

    def __call__(self, restored: Tensor, clean: Tensor) -> Tensor:
        """The loss of (N, C, H, W) tensors, a scalar tensor; in float32 at least."""
        if restored.shape != clean.shape:
            raise InputError(f"restored is {tuple(restored.shape)}, clean {tuple(clean.shape)}; give equal shapes")
        dtype = torch.promote_types(torch.promote_types(restored.dtype, clean.dtype), torch.float32)
        restored, clean = restored.to(dtype), clean.to(dtype)  # bf16 is too coarse for gray levels
        loss = 255 * self.l1 * F.l1_loss(restored, clean)
        if self.hfen:
            loss = loss + self.hfen * hfen(restored, clean)
        return loss
