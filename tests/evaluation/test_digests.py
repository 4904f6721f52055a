"""Files written atomically, and digests of data, of samples and of models."""

import hashlib
import os

import pytest
import torch
from torch import nn

from fastadv import files
from fastadv.evaluation import checkpoint


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_the_digest_is_the_same_however_the_data_are_cut():
    x, y = torch.rand(9, 2, 3), torch.arange(9)

    def digest(x, y, cuts):
        whole = checkpoint.DataDigest()
        for a, b in zip(x.split(cuts), y.split(cuts), strict=True):
            whole.update(a, b)
        return whole.hexdigest()

    expected = digest(x, y, 9)
    assert {digest(x, y, cuts) for cuts in (1, 2, 4, 5)} == {expected}
    assert digest(x, y.int(), 3) == expected  # labels of any integer type
    assert digest(x.reshape(9, 3, 2), y, 9) != expected
    assert digest(x.double(), y, 9) != expected
    assert digest(x.transpose(1, 2).contiguous().transpose(1, 2), y, 9) == expected


def test_the_digest_of_one_sample_of_many_is_that_of_a_copy():
    x, y = torch.rand(4, 2), torch.arange(4)
    one, other = checkpoint.DataDigest(), checkpoint.DataDigest()
    one.update(x[1::3][:1], y[1::3][:1])
    other.update(x[1:2].clone(), y[1:2].clone())
    assert one.hexdigest() == other.hexdigest()


def test_a_fingerprint_is_of_one_sample_however_the_data_are_cut():
    x, y = torch.rand(9, 2, 3), torch.arange(9)
    expected = checkpoint.fingerprints(x, y)
    assert expected.shape == (9,) and len(set(expected.tolist())) == 9
    for cut in (1, 2, 4, 5):
        parts = zip(x.split(cut), y.split(cut), strict=True)
        assert torch.equal(torch.cat([checkpoint.fingerprints(*part) for part in parts]), expected)
    order = torch.randperm(9)
    assert torch.equal(checkpoint.fingerprints(x[order], y[order]), expected[order])
    assert torch.equal(checkpoint.fingerprints(x, y.int()), expected)  # any integer type
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(checkpoint.fingerprints(strided, y), expected)
    assert torch.equal(checkpoint.fingerprints(x[1::3], y[1::3]), expected[1::3])


def test_a_fingerprint_sees_values_labels_shape_and_dtype():
    x, y = torch.rand(2, 2, 3), torch.tensor([3, 4])
    x[1], y[1] = x[0], y[0]
    same = checkpoint.fingerprints(x, y)
    assert same[0] == same[1]
    nudged = x.clone()
    nudged[1, 0, 0] = nudged[1, 0, 0].nextafter(torch.tensor(2.0))
    for other in ((nudged, y), (x, y + 1), (x.reshape(2, 3, 2), y), (x.double(), y)):
        assert checkpoint.fingerprints(*other)[1] != same[1]


def test_a_fingerprint_is_for_ever():
    """SHA-256 of "torch.float32(2,)", 0.0 and 1.0 as bytes, and 7 as int64, its first 8 bytes."""
    content = b"torch.float32(2,)" + bytes.fromhex("000000000000803f") + bytes([7] + [0] * 7)
    first = int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)
    assert checkpoint.fingerprints(torch.tensor([[0.0, 1.0]]), torch.tensor([7])).item() == first


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_a_fingerprint_of_no_samples_and_of_no_values(shape):
    found = checkpoint.fingerprints(torch.zeros(shape), torch.arange(shape[0]))
    assert len(set(found.tolist())) == shape[0]


def test_the_digest_of_a_model_sees_weights_and_buffers():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    first = checkpoint.digest_of_model(net)
    assert checkpoint.digest_of_model(net) == first
    net[1].running_mean[0] += 1
    assert checkpoint.digest_of_model(net) != first
    assert checkpoint.digest_of_model(None) == ""


def test_the_digest_of_a_model_does_not_see_addresses():
    class Named(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def extra_repr(self):
            return repr(self.function)

    first, second = (Named(lambda x: x) for _ in range(2))
    assert repr(first) != repr(second)
    assert checkpoint.digest_of_model(first) == checkpoint.digest_of_model(second)
