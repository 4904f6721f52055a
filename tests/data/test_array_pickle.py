import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest

from fastadv.data.array_pickle import read_array_pickle


class _Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _write(tmp_path, content: bytes):
    path = tmp_path / "batch"
    path.write_bytes(content)
    return path


def _python2_string(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text


def _python2_array(values: np.ndarray) -> bytes:
    """A uint8 array as Python 2 and numpy 1 pickled it: strings are bytes, modules old."""
    shape = b"".join(b"J" + struct.pack("<i", size) for size in values.shape)
    dtype = b"cnumpy\ndtype\n" + _python2_string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + _python2_string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + _python2_string(b"b")
        + b"\x87R(K\x01("
        + shape
        + b"t"
        + dtype
        + b"\x89"
        + _python2_string(values.tobytes())
        + b"tb"
    )


def test_arrays_of_python_2_come_back_with_their_values(tmp_path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3) + 200
    content = b"\x80\x02}(" + _python2_string(b"data") + _python2_array(values)
    content += _python2_string(b"labels") + b"](K\x03K\x08eu."
    # the bytes are what Python 2 wrote: the open unpickler agrees
    assert np.array_equal(pickle.loads(content, encoding="bytes")[b"data"], values)
    batch = read_array_pickle(_write(tmp_path, content))
    assert batch["labels"] == [3, 8]
    assert batch["data"].dtype == np.uint8
    assert batch["data"].tolist() == values.tolist()


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "<i4", ">i8"])
def test_arrays_of_python_3_come_back_with_their_values(tmp_path, protocol, dtype):
    values = np.arange(6).astype(dtype).reshape(2, 3)
    tree = {"a": values, b"f": np.asfortranarray(values), "s": [values[1, 2]], "b": b"\xff", "n": 1}
    batch = read_array_pickle(_write(tmp_path, pickle.dumps(tree, protocol=protocol)))
    assert batch["a"].tolist() == batch["f"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (batch["s"], batch["b"], batch["n"]) == ([5], b"\xff", 1)
    assert type(batch["s"][0]) is int


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_call_of_os_system_is_refused_and_not_made(tmp_path, protocol):
    trace = tmp_path / "executed"
    tree = {"data": np.zeros(3, np.uint8), "labels": [_Call(os.system, f"echo > {trace}")]}
    path = _write(tmp_path, pickle.dumps(tree, protocol=protocol))
    with pytest.raises(ValueError, match=r"asks for \w+\.system, which is not part of .*nothing"):
        read_array_pickle(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # the same file does run code when opened carelessly
    assert trace.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("builtins.eval", b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R."),
        ("__builtin__.eval", b"c__builtin__\neval\nX\x01\x00\x00\x001\x85R."),
        ("builtins.getattr", b"cbuiltins\ngetattr\n."),
        ("os.system", b"(X\x04\x00\x00\x00trueios\nsystem\n."),
        ("numpy.load", b"cnumpy\nload\n."),
        ("numpy.dtype.mro", b"\x80\x04\x8c\x05numpy\x8c\x09dtype.mro\x93."),
        ("numpy.core.multiarray.fromstring", b"cnumpy.core.multiarray\nfromstring\n."),
        ("collections.OrderedDict", pickle.dumps(OrderedDict(), protocol=2)),
    ],
)
def test_every_other_global_is_refused(tmp_path, name, content):
    with pytest.raises(ValueError, match=f"asks for {name.replace('.', '[.]')}, which is not"):
        read_array_pickle(_write(tmp_path, content))


_ENCODE = b"c_codecs\nencode\n"
_NDARRAY = b"cnumpy\nndarray\n"
_RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
_EMPTY = _RECONSTRUCT + _NDARRAY + b"K\x00\x85C\x01b\x87R"
_UINT8 = b"cnumpy\ndtype\nX\x02\x00\x00\x00u1K\x00K\x01\x87R"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_ENCODE + b"X\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.", "encodes with 'zlib'"),
        (_ENCODE + b"}b.", "sets the state of a global"),
        (_ENCODE + b"N}X\x06\x00\x00\x00_buildK\x01s\x86b.", "sets the state of a global"),
        (_NDARRAY + b"K\x05\x85R.", "calls numpy.ndarray"),
        (_NDARRAY + b")\x81.", "must be a type"),
        (_RECONSTRUCT + _UINT8 + b"K\x00\x85C\x01b\x87R.", "a subclass of numpy.ndarray"),
        (pickle.dumps(np.array([None]), protocol=2), "dtype 'O8', and only integers"),
        (pickle.dumps(np.zeros(2), protocol=2), "dtype 'f8', and only integers"),
        (pickle.dumps(np.zeros(2, "u1,u1"), protocol=2), "dtype 'V2', and only integers"),
        (_EMPTY + b"(K\x01K\x03\x85" + _UINT8 + b"\x89]tb.", "not a dtype and bytes"),
        (_EMPTY + b"(K\x01K\x03\x85" + _UINT8 + b"\x89C\x02abtb.", r"shape \(3,\) and 2 values"),
        (
            _EMPTY + b"(K\x01J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86" + _UINT8 + b"\x89C\x02abtb.",
            r"shape \(-1, -2\) and 2 values",
        ),
        (_UINT8 + b"(K\x03X\x01\x00\x00\x00OtbN.", "a dtype of byte order 'O'"),
    ],
)
def test_admitted_globals_cannot_be_abused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_array_pickle(_write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a pickle of numpy arrays: Ran out of input. Download it again"),
        (pickle.dumps({"data": b"12345"})[:-4], "is not a pickle of numpy arrays: "),
        (b"\x1f\x8b\x08 a gzip file", "is not a pickle of numpy arrays: "),
        (pickle.dumps({}) + b"abc", "has 3 trailing bytes after its pickle"),
        (pickle.dumps([1]), "must hold a pickled dictionary; got list"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_array_pickle(_write(tmp_path, content))
