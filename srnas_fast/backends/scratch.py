"""The scratch of the compiled programs: memory that one call leaves to the next, so that none waits for the system.

It belongs to no mixed operation: all calls share it, one arena for each call that runs at the same time. What idle
arenas keep is at most 512 MiB in a process; a call that needs more gives the rest back when it ends.
"""

from srnas_fast.backends import cpu


def scratch_held() -> int:
    """Bytes that the process keeps between calls; 0 before the compiled backend was used.

    >>> scratch_held() >= 0
    True
    """
    return 0 if cpu._module is None else cpu._module.scratch_held()


def free_scratch() -> None:
    """Give what is kept between calls back to the system, as before a long pause; the next call takes it anew.

    >>> free_scratch()
    >>> scratch_held()
    0
    """
    if cpu._module is not None:
        cpu._module.scratch_release()


def scratch_peak() -> int:
    """The most bytes of scratch that a call used since the last look."""
    return 0 if cpu._module is None else cpu._module.scratch_peak()
