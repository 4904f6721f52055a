import gzip
import struct

import numpy as np
import pytest
import torch

from fastadv.data import load_mnist, read_idx


def _idx(values: np.ndarray) -> bytes:
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


_IMAGES = (np.arange(3 * 28 * 28) % 251).reshape(3, 28, 28)
_LABELS = np.array([7, 0, 9])


def _write_pair(folder, images=_IMAGES, labels=_LABELS, prefix="t10k", suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    (folder / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(_idx(images)))
    (folder / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(_idx(labels)))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", [".", "MNIST/raw", "raw"])
def test_values_come_back_from_every_published_place(tmp_path, folder, suffix):
    _write_pair(tmp_path / folder, suffix=suffix)
    images, labels = load_mnist(tmp_path, "test")
    assert torch.equal(images, torch.tensor(_IMAGES, dtype=torch.uint8).unsqueeze(1))
    assert torch.equal(labels, torch.tensor(_LABELS, dtype=torch.int64))


def test_each_split_reads_its_own_files(tmp_path):
    _write_pair(tmp_path, labels=np.array([1, 2, 3]), prefix="train")
    _write_pair(tmp_path, labels=np.array([4, 5, 6]), prefix="t10k")
    assert load_mnist(tmp_path)[1].tolist() == [1, 2, 3]
    assert load_mnist(tmp_path, "test")[1].tolist() == [4, 5, 6]


def test_gzip_is_recognised_by_content(tmp_path):
    (tmp_path / "labels").write_bytes(gzip.compress(_idx(_LABELS)))
    assert read_idx(tmp_path / "labels").tolist() == [7, 0, 9]


def test_dimensions_are_big_endian(tmp_path):
    values = np.arange(300).reshape(1, 300) % 256
    (tmp_path / "x").write_bytes(_idx(values))
    assert read_idx(tmp_path / "x").tolist() == values.tolist()


def _change(content: bytes, where: int, value: int) -> bytes:
    return content[:where] + bytes([value]) + content[where + 1 :]


_LABEL_FILE = _idx(_LABELS)
_GZIPPED = gzip.compress(_idx(_IMAGES))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"<html>", "must start with the idx magic 00 00 08 .* got 3c 68 74 6d"),
        (_change(_LABEL_FILE, 2, 0x0D), "must start with the idx magic .* got 00 00 0d 01"),
        (_change(_LABEL_FILE, 3, 0), "number of dimensions above 0; got 00 00 08 00"),
        (_LABEL_FILE[:6], "is truncated: its header takes 8 bytes; got 6"),
        (_LABEL_FILE[:-1], r"is truncated: the shape \(3,\) takes 3 bytes; got 2"),
        (_change(_LABEL_FILE, 4, 255), r"is truncated: the shape \(4278190083,\)"),
        (_change(_LABEL_FILE, 7, 0), r"at least one element; got the shape \(0,\)"),
        (_LABEL_FILE + b"ab", r"2 trailing bytes: the shape \(3,\) takes 3; got 5"),
        (_GZIPPED[:-20], "is a corrupt gzip file: .*Download it again"),
        (_change(_GZIPPED, 40, _GZIPPED[40] ^ 255), "is a corrupt gzip file: "),
        (_change(_GZIPPED, len(_GZIPPED) - 6, 1), "is a corrupt gzip file: CRC check failed"),
        (_GZIPPED + b"ab", "is a corrupt gzip file: "),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "file")


def test_a_missing_idx_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="path must be an idx file; there is no file .*nix"):
        read_idx(tmp_path / "nix")


def test_missing_files_name_what_was_looked_for_and_where(tmp_path):
    message = r"train-images-idx3-ubyte and train-labels-idx1-ubyte, plain or \.gz, .*no such pair"
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load_mnist(tmp_path)
    assert str(tmp_path / "MNIST" / "raw") in str(caught.value)


def test_images_without_labels_are_no_pair(tmp_path):
    _write_pair(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="got no such pair in"):
        load_mnist(tmp_path, "test")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (_IMAGES[:2], _LABELS, "got 2 images and 3 labels. Do they belong to the same split"),
        (_LABELS, _LABELS, r"images of shape \(N, 28, 28\); got \(3,\)"),
        (_IMAGES[:, :27], _LABELS, r"images of shape \(N, 28, 28\); got \(3, 27, 28\)"),
        (_IMAGES, _IMAGES, r"labels of shape \(N,\); got \(3, 28, 28\)"),
        (_IMAGES, np.array([1, 2, 10]), "labels 0 to 9; got 10 at index 2"),
    ],
)
def test_files_that_disagree_are_refused(tmp_path, images, labels, message):
    _write_pair(tmp_path, images, labels)
    with pytest.raises(ValueError, match=message):
        load_mnist(tmp_path, "test")


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"split must be 'train' or 'test'; got 'val'\."):
        load_mnist(tmp_path, "val")


@pytest.mark.parametrize(
    ("split", "first", "counts"),
    [
        (
            "train",
            [5, 0, 4, 1, 9, 2, 1, 3, 1, 4],
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        ),
        (
            "test",
            [7, 2, 1, 0, 4, 1, 4, 9, 5, 9],
            [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        ),
    ],
)
def test_the_real_files_hold_the_published_digits(shared_data, split, first, counts):
    images, labels = load_mnist(shared_data / "mnist", split)
    assert labels[:10].tolist() == first
    assert torch.bincount(labels).tolist() == counts
    assert len(images) == sum(counts)


def test_the_real_training_images_have_the_published_mean(shared_data):
    images, _ = load_mnist(shared_data / "mnist")
    # 0.1307 and 0.3081 are quoted everywhere, rounded to four places
    assert abs(images.double().mean().item() / 255 - 0.1307) < 5e-5
    assert abs(images.double().std().item() / 255 - 0.3081) < 5e-5
