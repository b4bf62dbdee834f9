"""All tables of logits of a supernet at once, whatever their widths."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from srnas_fast.primitives.simplex_project import check_rows
from srnas_fast.simplex.sparsestmax import sparsestmax


def sparsestmax_tables(
    tables: Sequence[Tensor], radius: float | Tensor, look: bool = True
) -> list[tuple[Tensor, list[list[bool]] | None]]:
    """``sparsestmax`` of the rows of several tables, in one call and with one transfer from the GPU.

    Args:
        tables: (rows, choices) each, of one type; an entry of -inf is no choice.
        radius: of all rows, from 0 (sparsemax) up.
        look: whether to look at the weights, which waits for a GPU; without, rows that hold NaN or +inf become NaN.

    Returns:
        For each table its weights, of its shape, and for each of its rows which weights are not zero, or None without
        a look.

    Raises:
        InputError: as ``sparsestmax``.

    >>> (wide, alive), (narrow, _) = sparsestmax_tables([torch.tensor([[0.9, 0.6, -1.0]]), torch.zeros(1, 2)], 0.0)
    >>> wide, alive, narrow
    (tensor([[0.6500, 0.3500, 0.0000]]), [[True, True, False]], tensor([[0.5000, 0.5000]]))
    """
    widest = max(table.shape[1] for table in tables)
    logits = torch.cat([F.pad(table, (0, widest - table.shape[1]), value=-torch.inf) for table in tables])
    weights, support = sparsestmax(logits, radius, return_support=True, look=False)
    alive = support.tolist() if look else []
    if not all(map(any, alive)):
        check_rows(logits, radius)  # tells what is wrong with a row that has no weight
    found, start = [], 0
    for rows, choices in (table.shape for table in tables):
        stop = start + rows
        found.append((weights[start:stop, :choices], [row[:choices] for row in alive[start:stop]] if look else None))
        start = stop
    return found
