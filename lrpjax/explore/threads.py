"""How many threads scikit-learn takes for an analysis."""

import contextlib

__all__ = ["enough_for"]

FEW = 2000
"""Up to so many rows one thread works."""


def enough_for(rows: int) -> contextlib.AbstractContextManager:
    """A context in which few rows are analysed by one thread: several would wait for each other longer than they work,
    most of all beside other work."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # scikit-learn, which brings it, is missing: whoever needs that says so
        return contextlib.nullcontext()
    return threadpool_limits(1) if rows <= FEW else contextlib.nullcontext()
