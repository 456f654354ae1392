"""What the files of all other tools need: the error, the packages, and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrpjax.data.store import StoreError
from lrpjax.errors import LrpjaxError


class ExchangeError(LrpjaxError, ValueError):
    """What is to be written for another tool, or was read from one, does not fit together.

    >>> import numpy as np
    >>> from lrpjax import exchange
    >>> exchange.to_virelay("there", None, np.zeros((2, 4, 4)), [0, 1], None)
    Traceback (most recent call last):
    ...
    lrpjax.exchange.shared.ExchangeError: a project is made of an opened store and its Findings, not of NoneType...
    """


def hdf5() -> Any:
    """The module h5py, or an error that says where it comes from."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError('HDF5 files need h5py: pip install "lrpjax[exchange]"') from error
    return h5py


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """The path of a folder or a file, not there yet, that takes the target's name if nothing goes wrong.

    Raises:
        ExchangeError: the target is there already, or cannot be written.
    """
    if target.exists():
        raise ExchangeError(f"{target} is there already; delete it, or choose another name")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        part.rename(target)
    except StoreError:  # what is read, not what is written
        raise
    except OSError as error:
        raise ExchangeError(f"{target} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True) if part.is_file() else shutil.rmtree(part, ignore_errors=True)
