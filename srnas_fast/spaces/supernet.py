"""What the supernets of differentiable searches have in common."""

from typing import Any

from torch import Tensor, nn


class DifferentiableSupernet(nn.Module):
    """A network of all architectures at once, whose weights of the candidates a gradient can move.

    A class of one's own defines ``__init__(config)`` and the first four of these; what stands behind has defaults.
    :class:`srnas_fast.spaces.ChoiceSupernet` has all but ``forward``, where each edge chooses from one list.

    ``forward(x, support=None)``: images in, restored images out; ``support`` is what :meth:`support` returned.
    ``architecture_parameters()``: the list of logits that the search learns on held-out data.
    ``architecture_weights()``: for each group its column labels and its weights (rows, columns), for the log.
    ``genotype()``: the discrete architecture now, a dataclass of plain data.
    ``network_parameters()``: all other parameters.
    ``support()``: which weights are not zero; None: all.
    ``sparsity()``: numbers for the log of a sparse search.
    ``penalty()``: a term of its own in the loss of the architecture.
    ``radius``: that of sparsestmax, which a search sets before each step: a number or, on a GPU, a tensor () there.

    What changes from step to step must be a tensor, filled in place: on a GPU steps are replayed CUDA graphs, which
    read tensors anew and keep numbers as they were.

    >>> class Two(DifferentiableSupernet):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv, self.logits = nn.Conv2d(1, 1, 3), nn.Parameter(torch.zeros(2))
    ...     def architecture_parameters(self):
    ...         return [self.logits]
    >>> import torch
    >>> len(Two().network_parameters())  # the convolution's weight and bias
    2
    """

    def __init__(self):
        super().__init__()
        self.radius: float | Tensor = 0.0

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Abstract: the logits that the search learns. A space without it is refused before its first step."""
        raise NotImplementedError

    def architecture_weights(self) -> dict[str, tuple[list[str], Tensor]]:
        """Abstract: for each group its column labels and its weights (rows, columns)."""
        raise NotImplementedError

    def genotype(self) -> Any:
        """Abstract: the discrete architecture now."""
        raise NotImplementedError

    def network_parameters(self) -> list[nn.Parameter]:
        """All parameters but those of the architecture."""
        architecture = {id(p) for p in self.architecture_parameters()}
        return [p for p in self.parameters() if id(p) not in architecture]

    def support(self) -> Any:
        """Which weights are not zero now; None: all of them."""
        return None

    def penalty(self) -> Tensor | None:
        """A term of the loss of the architecture, with its coefficient; None: there is none."""
        return None

    def sparsity(self) -> dict[str, float]:
        """Numbers for the log; none where no weight is ever zero."""
        return {}
