"""Layer-wise relevance propagation as a JAX function transform."""

__version__ = "0.1.0"
