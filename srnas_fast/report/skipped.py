"""What was left out, said aloud."""

import sys
from collections.abc import Sequence


def print_skipped(skipped: Sequence[str]) -> None:
    """Name the images that were left out, and count them, on the standard error."""
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    if skipped:
        print(f"{len(skipped)} {'image' if len(skipped) == 1 else 'images'} skipped", file=sys.stderr)
