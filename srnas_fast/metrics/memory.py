"""How many bytes of tensors are alive, counted exactly and on any device."""

import gc
import weakref
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from srnas_fast.backends.scratch import scratch_peak


@dataclass
class _Counted:
    """One storage: a weak reference that reports its end, its first size, its bytes in the total."""

    reference: weakref.ref
    before: int
    counted: int = 0


class LiveMemory(TorchDispatchMode):
    """Bytes of live tensors that were allocated inside the ``with`` block, on all devices together.

    Every storage counts once with its own size (no allocator rounding), however many views it has, from the
    operator that makes it, in the forward or in the backward pass, until it is freed: also when that happens
    after the block. Tensors from before the block count 0; one that is resized inside counts what it grew by. The
    scratch that a compiled program uses (:func:`srnas_fast.mixed.free_scratch`) counts in ``peak`` while its call runs;
    between calls it is nobody's, and in no ``live``.

    Not seen: what one operator takes and gives back inside itself (cuDNN workspaces, temporaries of a custom
    operator's kernel), storages that come without an operator (``copy.deepcopy``, unpickling), and code under
    ``torch.compile``.

    Attributes:
        live: bytes alive now.
        peak: the largest ``live`` so far, or since ``reset_peak()``.

    >>> x = torch.ones(1000, requires_grad=True)
    >>> with LiveMemory() as memory:
    ...     y = x.sigmoid()  # 4000 bytes, kept for the backward pass
    ...     total = (y * 2).sum()  # 4000 more, freed at once, and 4 that stay
    ...     del y
    ...     between = memory.held()
    ...     total.backward()
    >>> between, memory.peak  # the peak: y, the gradients of y * 2 and of x, two scalars
    (4004, 12008)
    >>> del total
    >>> memory.live  # the gradient of x
    4000
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._storages: dict[int, _Counted] = {}  # by address: it is free for another only after our callback

    def held(self) -> int:
        """``live`` after a garbage collection: what is really kept, e.g. between forward and backward."""
        gc.collect()
        return self.live

    def reset_peak(self) -> None:
        """Start a new peak from what is alive now."""
        self.peak = self.live

    def __enter__(self) -> "LiveMemory":
        # Storage.resize_ is the one allocation that passes no operator.
        self._resize = original = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> None:
            self._know(storage, new=False)
            original(storage, size)
            self._recount(storage)

        torch.UntypedStorage.resize_ = resize_
        return super().__enter__()

    def __exit__(self, *exception) -> None:
        torch.UntypedStorage.resize_ = self._resize
        super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = _storages((args, kwargs))
        # torch.tensor() and the like fill their storage first and then pass it through lift_fresh.
        fresh = func is torch.ops.aten.lift_fresh.default
        for storage in given:
            self._know(storage, new=fresh)
        scratch_peak()  # of calls before this one
        result = func(*args, **kwargs)
        for storage in given + _storages(result):
            self._know(storage, new=True)
            self._recount(storage)
        self.peak = max(self.peak, self.live + scratch_peak())
        return result

    def _know(self, storage: torch.UntypedStorage, new: bool) -> None:
        key = storage._cdata
        if key not in self._storages:
            reference = weakref.ref(storage, lambda _: self._freed(key))
            self._storages[key] = _Counted(reference, before=0 if new else storage.nbytes())

    def _recount(self, storage: torch.UntypedStorage) -> None:
        entry = self._storages[storage._cdata]
        counted = max(0, storage.nbytes() - entry.before)
        self.live += counted - entry.counted
        entry.counted = counted
        self.peak = max(self.peak, self.live)

    def _freed(self, key: int) -> None:
        self.live -= self._storages.pop(key).counted


def _storages(tree) -> list[torch.UntypedStorage]:
    """The storages in nested arguments or results: of all dense tensors, and bare ones (``Tensor.set_``)."""
    storages = []
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.UntypedStorage):
            storages.append(leaf)
        elif isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
            storages.append(leaf.untyped_storage())
    return storages
