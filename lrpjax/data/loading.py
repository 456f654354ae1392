"""What the command line names: inputs in files, a model and its checkpoint, a composite."""

from __future__ import annotations

import ast
import contextlib
import functools
import glob
import importlib
import importlib.util
import inspect
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from lrpjax import composites
from lrpjax.data import pictures

KINDS = (".npy", ".npz", *pictures.SUFFIXES)
"""The endings of files with inputs."""


class Inputs:
    """The inputs in files, one after the other; those of a slice are read when it is taken.

    Args:
      patterns: file names, globs (whose files are sorted by name), or folders: all .npy, .npz, .png, .jpg and .jpeg
        files in them and in their subfolders, sorted by their paths. Hidden ones, and the stores of results, are passed
        over; files of other kinds too, which are then in `passed_over`.
      key: array of .npz files that is meant; `None`: the only one.
      size: "HxW" to resize pictures to, or "N" to resize them to so many pixels along their shorter side; `None`: as
        they are.
      crop: "HxW", the middle that is cut out of the pictures then; `None`: all of them.
      mean, std: numbers with commas between them, one for each channel (the last axis) or one for all; inputs become
        (x - mean) / std. `None`: 0 and 1.
      channels: "1" to make all pictures grey, "3" to give all of them red, green and blue; `None`: as they are.
      skip_unreadable: whether pictures that cannot be read are inputs of NaN, whose results are NaN, not errors.

    Attributes:
      paths: the files, in the order of the inputs. rows: how many inputs they have.
      passed_over: files of other kinds in the folders. unreadable: pictures that were found unreadable so far, with the
        reason, {file: text}.

    Raises:
      FileNotFoundError: a pattern without a file; a folder without one of these kinds.
      ValueError: files of another kind, without rows, with rows of different shapes (the files of each shape are named,
        from their headers); pictures that cannot be read or are smaller than the crop; a mean or std that does not fit
        the channels.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        key: str | None = None,
        size: str | None = None,
        crop: str | None = None,
        mean: str | None = None,
        std: str | None = None,
        channels: str | None = None,
        skip_unreadable: bool = False,
    ):
        self._key, self._skip = key, skip_unreadable
        if channels not in (None, "1", "3"):
            raise ValueError(f"--channels must be 1 or 3, not {channels!r}")
        self._channels_of_pictures = int(channels) if channels else None
        self._size = numbers(size, "x", "--size") if size else None
        if self._size and len(self._size) > 2:
            raise ValueError(f"--size must be HxW, such as 224x224, or the shorter side, not {size!r}")
        self._crop = numbers(crop, "x", "--crop") if crop else None
        if self._crop and len(self._crop) != 2:
            raise ValueError(f"--crop must be HxW, such as 224x224, not {crop!r}")
        self._mean, self._std = _channels(mean, "--mean"), _channels(std, "--std")
        if self._std is not None and not (self._std > 0).all():
            raise ValueError(f"--std must be above 0, not {std!r}")
        self.passed_over: list[Path] = []
        self.unreadable: dict[Path, str] = {}
        self.paths = [path for pattern in patterns for path in _matching(pattern, self.passed_over)]
        self._load = functools.lru_cache(maxsize=1)(self._load_file)
        headers = [self._header(path) for path in self.paths]
        self._row_shape = self._one_shape(headers)
        self._ends = np.cumsum([1 if shape is None else shape[0] for shape in headers])
        self.rows = int(self._ends[-1])

    @property
    def all_pictures(self) -> bool:
        """Whether all inputs are pictures, whose channels are last."""
        return all(path.suffix.lower() in pictures.SUFFIXES for path in self.paths)

    def __getitem__(self, rows: slice) -> np.ndarray:
        first = int(np.searchsorted(self._ends, rows.start, side="right"))
        parts = []
        for path, end in zip(self.paths[first:], self._ends[first:], strict=True):
            array, begin = self._load(path), 0
            begin = end - array.shape[0]
            parts.append(self._normalised(array[max(rows.start - begin, 0) : rows.stop - begin], path))
            if parts[-1].shape[1:] != parts[0].shape[1:]:
                shape, other = parts[0].shape[1:], parts[-1].shape[1:]
                raise ValueError(
                    f"{path} has inputs of shape {other}, {self.paths[first]} of {shape}"
                    + ("; --size makes pictures alike" if len(shape) == 3 and shape[2:] == other[2:] else "")
                )
            if end >= rows.stop:
                break
        return np.concatenate(parts)

    def _normalised(self, array: np.ndarray, path: Path) -> np.ndarray:
        array = _as_input(array)
        for name, values in (("--mean", self._mean), ("--std", self._std)):
            if values is None:
                continue
            if array.dtype.kind != "f":
                raise ValueError(
                    f"{name}: {path} has {array.dtype}, and only floats and bytes are normalised"
                )
            if len(values) not in (1, array.shape[-1]):
                raise ValueError(
                    f"{name} has {len(values)} numbers, but {path} has {array.shape[-1]} channels"
                )
        if self._mean is not None:
            array = array - self._mean.astype(array.dtype)
        return array if self._std is None else array / self._std.astype(array.dtype)

    def _header(self, path: Path) -> tuple[int, ...] | None:
        """The shape of the inputs of a file, rows first, from its header; `None`: the file cannot be read."""
        if path.suffix.lower() in pictures.SUFFIXES:
            try:
                with readable(path):
                    height, width, channels = pictures.header(path, self._channels_of_pictures)
            except (OSError, ValueError) as error:
                self.unreadable[path] = str(error)
                return None
            width, height = pictures.resized((width, height), self._size) if self._size else (width, height)
            if self._crop:
                pictures.middle((width, height), self._crop, path)
                height, width = self._crop
            return 1, height, width, channels
        with readable(path):
            if path.suffix.lower() == ".npy":
                shape = np.load(path, mmap_mode="r").shape
            else:
                with zipfile.ZipFile(path) as archive, archive.open(f"{self._array(path)}.npy") as file:
                    version = np.lib.format.read_magic(file)
                    form = np.lib.format
                    read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
                    shape = read(file)[0]
        if not shape or not shape[0]:
            raise ValueError(f"{path} has no inputs: its array has the shape {shape}")
        return shape

    def _one_shape(self, headers: Sequence[tuple[int, ...] | None]) -> tuple[int, ...]:
        """The shape of one input, if it is the same in all files that can be read."""
        if self.unreadable and not self._skip:
            listed = _some([f"{reason}" for reason in self.unreadable.values()], "; ")
            raise ValueError(
                f"{len(self.unreadable)} of {len(self.paths)} files cannot be read: {listed}. Mend or remove them, or "
                "give --skip-unreadable, which makes their results NaN"
            )
        files: dict[tuple[int, ...], list[Path]] = {}
        for path, shape in zip(self.paths, headers, strict=True):
            if shape is not None:
                files.setdefault(tuple(shape[1:]), []).append(path)
        if not files:
            raise ValueError(
                f"none of the {len(self.paths)} files can be read: {next(iter(self.unreadable.values()))}"
            )
        if len(files) == 1:
            return next(iter(files))
        groups = sorted(files.items(), key=lambda item: -len(item[1]))
        listed = [f"{shape} in {len(paths)} (such as {paths[0]})" for shape, paths in groups]
        advice, shown = "", [shape for shape, paths in groups if paths[0].suffix.lower() in pictures.SUFFIXES]
        if len({shape[:2] for shape in shown}) > 1:
            advice += ". --size HxW makes the pictures alike, or --size N with --crop HxW"
        if len({shape[2] for shape in shown}) > 1:
            advice += ". --channels 3 gives all pictures three channels, --channels 1 makes them grey"
        raise ValueError(f"the inputs of the files have different shapes: {_some(listed, '; ')}{advice}")

    def _array(self, path: Path) -> str:
        with np.load(path) as arrays:
            names = arrays.files
        if self._key is None and len(names) != 1:
            raise ValueError(f"{path} has the arrays {', '.join(names)}; choose one with --key")
        if self._key is not None and self._key not in names:
            raise ValueError(f"{path} has the arrays {', '.join(names)}, not {self._key!r}")
        return self._key or names[0]

    def _load_file(self, path: Path) -> np.ndarray:
        with readable(path):
            if path.suffix.lower() == ".npy":
                return np.load(path, mmap_mode="r")
            if path.suffix.lower() == ".npz":
                with np.load(path) as arrays:
                    return arrays[self._array(path)]
        if path not in self.unreadable:
            try:
                with readable(path):
                    options = self._size, self._crop, self._channels_of_pictures
                    return pictures.pixels(path, *options)[None]
            except (OSError, ValueError) as error:
                self.unreadable[path] = str(error)
                if not self._skip:
                    raise ValueError(
                        f"{error}. What was explained before it is kept: mend the file and give the command again to "
                        "go on, or give it with --skip-unreadable, which makes the file's results NaN"
                    ) from error
        return np.full((1, *self._row_shape), np.nan, np.float32)


def load_model(
    spec: str,
    checkpoint: str | None = None,
    mesh: Mesh | None = None,
    shapes: bool = False,
    pictures: bool = False,
) -> tuple[Callable[..., Any], Any]:
    """The function and the params of the model that a command line names.

    Args:
      spec: "package.module:build" or "path/to/file.py:build"; `build()` returns `(f, params)` with `f(params, x)`.
        "torch:" before either: it returns a `torch.nn.Module` of one input, or the module and a dict of what
        `lrpjax.torch.function` takes by name (`output`, other arguments of the module).
      checkpoint: directory of an orbax checkpoint with params of the structure that `build` gives.
      mesh: devices to restore the checkpoint to, replicated; `None`: the default device.
      shapes: whether shapes in place of params will do.
      pictures: whether the inputs have their channels last, where a torch module has them first.

    Returns:
      `(f, params)`.

    Raises:
      ImportError, ValueError: there is no such function, it fails, or returns something else.
      FileNotFoundError, ValueError: there is no such checkpoint, or it is another model's.
    """
    framework, _, named = spec.partition(":")
    torch = framework == "torch" and ":" in named
    build = _named_object(named if torch else spec, "--model")
    if not callable(build):
        raise ValueError(f"--model {spec}: it is no function but {type(build).__name__}")
    try:
        built = build()
    except Exception as error:
        raise ValueError(f"--model {spec}: calling it failed with {type(error).__name__}: {error}") from error
    if torch:
        if checkpoint is not None:
            raise ValueError(f"--model {spec} loads its own weights: --params is for checkpoints of orbax")
        return _torch_model(built, spec, pictures)
    if not isinstance(built, tuple) or len(built) != 2 or not callable(built[0]):
        what = type(built).__name__
        raise ValueError(
            f"--model {spec} must return a tuple (f, params) with a function f(params, x), not {what}"
        )
    f, params = built
    if checkpoint is not None:
        return f, restore(checkpoint, params, mesh)
    if not shapes and any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        raise ValueError(
            f"--model {spec} returns the shapes of its params only; give a checkpoint with --params DIR"
        )
    return f, params


def _torch_model(built: Any, spec: str, pictures: bool) -> tuple[Callable[..., Any], Any]:
    """`load_model` for what a `build` of a torch module returns."""
    from lrpjax import torch

    module, options = built if isinstance(built, tuple) and len(built) == 2 else (built, {})
    if not isinstance(options, dict):
        raise ValueError(
            f"--model {spec} must return a torch.nn.Module, or (module, a dict of arguments), not a "
            f"{type(options).__name__} beside it"
        )
    f, params = torch.function(module, np.zeros(1, np.float32), **options)
    return (lambda params, x: f(params, jnp.moveaxis(x, -1, 1)) if pictures else f(params, x)), params


def restore(checkpoint: str, params: Any, mesh: Mesh | None = None) -> Any:
    """Params from an orbax checkpoint.

    Args:
      checkpoint: directory of one checkpoint, or one that holds a single checkpoint further down.
      params: pytree of arrays or of their shapes: the structure of the params.
      mesh: devices that get the params, replicated; `None`: the default device.

    Returns:
      A pytree like `params` of JAX arrays.

    Raises:
      FileNotFoundError: there is no checkpoint, or more than one.
      ValueError: the checkpoint is of another model; the first differences are named.
    """
    import orbax.checkpoint as ocp

    root = Path(checkpoint).absolute()
    found = [file.parent for depth in ("", "*/", "*/*/") for file in sorted(root.glob(f"{depth}_METADATA"))]
    if not found:
        raise FileNotFoundError(f"--params {checkpoint}: there is no orbax checkpoint")
    if len(found) > 1:
        choices = ", ".join(str(Path(checkpoint) / path.relative_to(root)) for path in found)
        raise FileNotFoundError(
            f"--params {checkpoint}: there are several checkpoints; give one of {choices}"
        )
    sharding = NamedSharding(mesh, PartitionSpec()) if mesh else SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        there = _shapes(checkpointer.metadata(found[0]).item_metadata.tree)
        here = _shapes(params)
        differ = [
            f"{name}: {there.get(name, 'missing')} there, {here.get(name, 'missing')} in the model"
            for name in {**here, **there}
            if there.get(name) != here.get(name)
        ]
        if differ:
            more = f"; and {len(differ) - 5} more" if len(differ) > 5 else ""
            raise ValueError(f"--params {checkpoint} is of another model ({'; '.join(differ[:5])}{more})")
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), params
        )
        return checkpointer.restore(found[0], wanted)


def load_composite(name: str, arguments: Sequence[str]) -> tuple[Any, str]:
    """The composite that a command line names.

    Args:
      name: function of `lrpjax.composites`, or "package.module:name" of a composite or a function that makes
        one.
      arguments: "name=value" each; values are Python literals.

    Returns:
      The composite, and how it is written.

    Raises:
      ValueError: there is no such composite, or it has no such argument.

    Example:
      >>> load_composite("epsilon_gamma_box", ["low=0", "high=1"])[1]
      'epsilon_gamma_box(low=0, high=1)'
    """
    values = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        try:
            values[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            equals = ""
        if not equals:
            raise ValueError(
                f"--composite-arg must be NAME=VALUE with a number, such as low=0, not {argument!r}"
            )
    if ":" in name:
        make = _named_object(name, "--composite")
    elif name in presets():
        make = getattr(composites, name)
    else:
        raise ValueError(f"--composite {name}: there is no such composite; there are {', '.join(presets())}")
    if isinstance(make, composites.Composite) and not values:
        return make, name
    if not callable(make):
        raise ValueError(
            f"--composite {name}: it is no composite but {type(make).__name__}, or takes no arguments"
        )
    signature = inspect.signature(make)
    try:
        signature.bind(**values)
    except TypeError as error:
        raise ValueError(
            f"--composite {name}{signature}: {error}; give arguments with --composite-arg"
        ) from error
    return make(**values), f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"


def presets() -> list[str]:
    """The names of the functions of `lrpjax.composites` that make composites."""
    functions = inspect.getmembers(composites, inspect.isfunction)
    return [name for name, f in functions if not name.startswith("_") and f.__module__ == composites.__name__]


def _named_object(spec: str, option: str) -> Any:
    # From the right, for a path may begin with the letter of a drive and a colon.
    place, colon, name = spec.rpartition(":")
    if not (place and colon and name.isidentifier()):
        raise ValueError(
            f"{option} must be MODULE:NAME, such as package.module:build, or FILE.py:NAME, not {spec!r}"
        )
    if place.endswith(".py") or "/" in place or "\\" in place:
        module = _module_of_file(Path(place), spec, option)
    else:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        with _importing(place, spec, option):
            module = importlib.import_module(place)
    if not hasattr(module, name):
        raise ValueError(f"{option} {spec}: {place} has no {name!r}")
    return getattr(module, name)


def _module_of_file(path: Path, spec: str, option: str) -> Any:
    """The module that a Python file is, run once however often it is named; its folder is searched as a script's is."""
    if not path.is_file():
        raise FileNotFoundError(f"{option} {spec}: there is no file {path}")
    file = path.resolve()
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    there = sys.modules.get(file.stem)
    name = file.stem if there is None or getattr(there, "__file__", None) == str(file) else str(file)
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise ImportError(f"{option} {spec}: {path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses, Flax's modules among them, look their own module up
    try:
        with _importing(str(path), spec, option):
            found.loader.exec_module(module)
    except ImportError:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _importing(place: str, spec: str, option: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ImportError(f"{option} {spec}: importing {place} failed with {reason}") from error


def _matching(pattern: str, passed_over: list[Path]) -> list[Path]:
    if Path(pattern).is_dir():
        return _in_folder(Path(pattern), passed_over)
    paths = (
        [Path(pattern)] if Path(pattern).is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
    )
    if not paths:
        raise FileNotFoundError(f"--inputs {pattern}: there is no such file")
    for path in paths:
        if path.suffix.lower() not in KINDS:
            raise ValueError(
                f"--inputs {path}: inputs are .npy, .npz, .png and .jpg files, or folders of them"
            )
    return paths


def _in_folder(folder: Path, passed_over: list[Path]) -> list[Path]:
    """The inputs in a folder and its subfolders, sorted; files of other kinds are added to `passed_over`."""
    files, entered = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if (
            real in entered or "zarr.json" in names
        ):  # a link that leads back; a store, whose pictures are results
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place, name) for name in names if not name.startswith(".")]
    paths = sorted(path for path in files if path.suffix.lower() in KINDS)
    others = sorted(path for path in files if path.suffix.lower() not in KINDS)
    if not paths:
        there = f"; it has {len(others)} files of other kinds" if others else ""
        raise FileNotFoundError(f"--inputs {folder}: the folder has no .npy, .npz, .png or .jpg file{there}")
    passed_over += others
    return paths


def _some(texts: Sequence[str], separator: str) -> str:
    return separator.join(texts[:5]) + (f"{separator}and {len(texts) - 5} more" if len(texts) > 5 else "")


def _as_input(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) / np.float32(255) if array.dtype == np.uint8 else np.asarray(array)


def _channels(text: str | None, option: str) -> np.ndarray | None:
    """The numbers of an option, one for each channel."""
    if text is None:
        return None
    try:
        values = np.array([float(part) for part in text.split(",")])
    except ValueError:
        values = np.array(np.nan)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{option} must be numbers with commas between them, such as 0.5,0.4,0.4, not {text!r}"
        )
    return values


def class_names(path: str) -> list[str]:
    """The names of classes 0, 1, ... in a text file, one in each line.

    Args:
      path: the file, UTF-8.

    Raises:
      OSError, ValueError: it cannot be read, is empty, or leaves a line empty.
    """
    with readable(Path(path)):
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    if not names or not all(names):
        empty = f"{names.count('')} of {len(names)} is empty" if names else "it is empty"
        raise ValueError(f"--labels {path} must name a class in every line, but {empty}")
    return names


def numbers(text: str, separator: str, option: str) -> tuple[int, ...]:
    parts = text.split(separator)
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option} must be whole numbers with {separator!r} between them, not {text!r}")
    return tuple(map(int, parts))


def _shapes(params: Any) -> dict[str, str]:
    """Path -> dtype and shape of each leaf, of random keys those of the numbers that they are stored as."""

    def stored(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf

    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(stored, params))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, (_, leaf) in zip(names, leaves, strict=True)}


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Names the file in errors of those who read it."""
    try:
        yield
    except (
        OSError,
        ValueError,
        zipfile.BadZipFile,
        EOFError,
        SyntaxError,
        struct.error,
        zlib.error,
    ) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read: {error}") from error
