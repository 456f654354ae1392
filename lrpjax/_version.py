"""The version, in a module of its own so that the package's parts need not import the package to know it."""

__version__ = "0.2.0"
