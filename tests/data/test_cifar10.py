import os
import pickle
import runpy

import numpy as np
import pytest
import torch

from fastadv.data import load_cifar10

_TRAIN = [f"data_batch_{k}" for k in range(1, 6)]


def _batch(seed: int, n: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) whose every pixel tells its place, and labels."""
    places = np.arange(n * 3 * 32 * 32, dtype=np.int64).reshape(n, 3, 32, 32)
    return ((places * 37 + seed) % 251).astype(np.uint8), (np.arange(n) + seed) % 10


def _write_binary(path, images, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    records = np.concatenate(
        [labels.astype(np.uint8)[:, None], images.reshape(len(images), -1)], axis=1
    )
    path.write_bytes(records.tobytes())


def _write_python(path, images, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = {b"data": images.reshape(len(images), -1), b"labels": [int(y) for y in labels]}
    path.write_bytes(pickle.dumps(batch, protocol=2))


_VERSIONS = {
    "binary": (_write_binary, "cifar-10-batches-bin", ".bin"),
    "python": (_write_python, "cifar-10-batches-py", ""),
}


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize("unpacked", [True, False])
def test_training_batches_come_back_in_order(tmp_path, version, unpacked):
    write, folder, suffix = _VERSIONS[version]
    batches = [_batch(seed) for seed in range(5)]
    for name, batch in zip(_TRAIN, batches, strict=True):
        write(tmp_path / folder / f"{name}{suffix}", *batch)
    images, labels = load_cifar10(tmp_path / folder if unpacked else tmp_path)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(images, torch.from_numpy(np.concatenate([b[0] for b in batches])))
    assert labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    images.zero_()  # memory of its own


@pytest.mark.parametrize("version", _VERSIONS)
def test_the_test_batch_comes_back(tmp_path, version):
    write, folder, suffix = _VERSIONS[version]
    write(tmp_path / folder / f"test_batch{suffix}", *_batch(6, n=4))
    images, labels = load_cifar10(tmp_path, "test")
    assert torch.equal(images, torch.from_numpy(_batch(6, n=4)[0]))
    assert labels.tolist() == [6, 7, 8, 9]


def test_the_binary_version_is_preferred(tmp_path):
    _write_python(tmp_path / "cifar-10-batches-py" / "test_batch", *_batch(1))
    _write_binary(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", *_batch(2))
    assert load_cifar10(tmp_path, "test")[1].tolist() == [2, 3]


def test_a_complete_python_version_is_taken_before_an_incomplete_binary_one(tmp_path):
    _write_binary(tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin", *_batch(1))
    for name in _TRAIN:
        _write_python(tmp_path / "cifar-10-batches-py" / name, *_batch(3))
    assert load_cifar10(tmp_path)[1].tolist() == [3, 4] * 5


def test_missing_files_are_named(tmp_path):
    _write_binary(tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin", *_batch(1))
    message = "root must hold data_batch_1, .*cifar-10-batches-bin lacks data_batch_2.bin, .*5.bin"
    with pytest.raises(FileNotFoundError, match=message):
        load_cifar10(tmp_path)


def test_an_empty_folder_says_what_is_looked_for(tmp_path):
    message = r"root must hold test_batch, all with \.bin \(cifar-10-batches-bin\) .*no folder\.$"
    with pytest.raises(FileNotFoundError, match=message):
        load_cifar10(tmp_path, "test")


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"split must be 'train' or 'test'; got None\."):
        load_cifar10(tmp_path, None)


@pytest.mark.parametrize("size", [0, 3072, 3074, 2 * 3073 - 1])
def test_a_binary_batch_of_a_wrong_size_is_refused(tmp_path, size):
    (tmp_path / "test_batch.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=f"positive multiple of 3073 bytes .*; got {size}[.]"):
        load_cifar10(tmp_path, "test")


@pytest.mark.parametrize("version", _VERSIONS)
def test_a_label_above_9_is_refused(tmp_path, version):
    write, _, suffix = _VERSIONS[version]
    write(tmp_path / f"test_batch{suffix}", _batch(0)[0], np.array([9, 10]))
    with pytest.raises(ValueError, match=r"labels 0 to 9; got 10 at index 1\. Is it a batch"):
        load_cifar10(tmp_path, "test")


_PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": _PIXELS, "fine_labels": [1, 2]}, r"got \['data', 'fine_labels'\]\. Is it"),
        ({"data": [1, 2], "labels": [1, 2]}, "an array as 'data'; got list"),
        ({"data": _PIXELS.astype("i4"), "labels": [1, 2]}, r"uint8 .*; got int32 and \(2, 3072\)"),
        ({"data": _PIXELS[:, 1:], "labels": [1, 2]}, r"; got uint8 and \(2, 3071\)"),
        ({"data": _PIXELS[:0], "labels": []}, r"N > 0; got uint8 and \(0, 3072\)"),
        ({"data": _PIXELS, "labels": [1]}, "got 2 images and 1 labels"),
        ({"data": _PIXELS, "labels": ["a", "b"]}, "'labels'; got list of other values"),
        ({"data": _PIXELS, "labels": "ab"}, "'labels'; got str"),
        ({"data": _PIXELS, "labels": [1, -1]}, "labels 0 to 9; got -1 at index 1"),
        ({"data": _PIXELS, "labels": [1, 10**30]}, "labels 0 to 9; got 10{30} at index 1"),
    ],
)
def test_a_python_batch_with_other_contents_is_refused(tmp_path, batch, message):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=4))
    with pytest.raises(ValueError, match=message):
        load_cifar10(tmp_path, "test")


def test_labels_in_an_array_are_read(tmp_path):
    batch = {"data": _PIXELS, "labels": np.array([4, 9], np.uint8)}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    assert load_cifar10(tmp_path, "test")[1].tolist() == [4, 9]


def test_a_truncated_python_batch_is_refused(tmp_path):
    _write_python(tmp_path / "test_batch", *_batch(0))
    content = (tmp_path / "test_batch").read_bytes()
    (tmp_path / "test_batch").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="test_batch is not a pickle of numpy arrays: "):
        load_cifar10(tmp_path, "test")


def test_a_batch_that_runs_a_command_is_refused_and_not_run(tmp_path):
    class Command:
        def __reduce__(self):
            return os.system, (f"echo > {tmp_path / 'executed'}",)

    batch = {"data": _PIXELS, "labels": [1, 2], "filenames": Command()}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match=r"asks for \w+\.system.*nothing of it was run"):
        load_cifar10(tmp_path, "test")
    assert not (tmp_path / "executed").exists()


def test_the_real_test_batch_holds_the_published_images(shared_data, tmp_path):
    pytest.importorskip("PIL", reason="needs pillow, which unpacks the shared images")
    unpack = runpy.run_path(str(shared_data / "unpack.py"))  # unlike import, writes no bytecode
    labels = np.load(shared_data / "cifar10" / "test_labels.npy")
    images = unpack["cifar_images"]("test", range(20))
    unpack["write_batch"](tmp_path / "test_batch.bin", images, labels)
    images, labels = load_cifar10(tmp_path, "test")
    assert labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert torch.bincount(labels).tolist() == [1000] * 10
    assert images[0, :, 0, 0].tolist() == [158, 112, 49]  # the first cat's corner: r, g, b
    # the training set's published mean; the test set's differs by less than 0.005
    mean = images.double().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=5e-3, rtol=0)
