"""Finds, builds and loads compiled code, and reports what this machine can do (``backends.report``)."""
