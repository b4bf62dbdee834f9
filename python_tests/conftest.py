"""What several rooms of the tests share."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes share the cores: with more threads than cores OpenMP waits many times longer than it computes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
