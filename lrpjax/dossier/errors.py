"""The error of this part, which all of its modules raise."""

from lrpjax.errors import LrpjaxError


class DossierError(LrpjaxError, ValueError):
    """A dossier cannot be made, read or written as asked: inputs without one finite row, another model's store.

    >>> import jax.numpy as jnp
    >>> from lrpjax import dossier
    >>> dossier.make(lambda params, x: x @ params, jnp.eye(2), jnp.ones((0, 2)))
    Traceback (most recent call last):
    ...
    lrpjax.dossier.errors.DossierError: a dossier is made from inputs [N, ...] with N of at least 1, not from...
    """
