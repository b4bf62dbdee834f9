"""What the losses of HiNAS have in common: an error of the pixels beside a term of structural similarity."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

from torch import Tensor

from srnas_fast.errors import InputError, require_number
from srnas_fast.losses.ssim import log_ssim


class SimilarityLoss:
    """``(weight * error + log_ssim * S) / 2`` with ``S = -log10(mean SSIM)``, on images of the [0, 1] scale.

    A loss is a dataclass with two weights, the error's first and then ``log_ssim``, and the ``error``.

    >>> from torch.nn import functional as F
    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Smooth(SimilarityLoss):
    ...     smooth: float = 1.0
    ...     log_ssim: float = 0.5
    ...     error = staticmethod(F.smooth_l1_loss)
    >>> Smooth(smooth=0.0, log_ssim=-1.0)
    Traceback (most recent call last):
    ...
    srnas_fast.errors.InputError: loss.log_ssim is -1.0; give a number from 0 up
    """

    error: ClassVar[Callable[[Tensor, Tensor], Any]]
    log_ssim: float

    def __post_init__(self) -> None:
        self._weight, similarity = (field.name for field in fields(self))
        require_number(self, "loss.", above=[], least=[self._weight, similarity])
        if not (getattr(self, self._weight) or self.log_ssim):
            raise InputError(
                f"both loss weights are 0: nothing would be learnt; give {self._weight} or log_ssim a number above 0"
            )

    def __call__(self, restored: Tensor, clean: Tensor) -> Tensor:
        """The loss of (N, C, H, W) tensors, a scalar tensor."""
        if restored.shape != clean.shape:
            raise InputError(f"restored is {tuple(restored.shape)}, clean {tuple(clean.shape)}; give equal shapes")
        loss = getattr(self, self._weight) * self.error(restored, clean)
        if self.log_ssim:
            loss = loss + self.log_ssim * log_ssim(restored, clean)
        return loss / 2
