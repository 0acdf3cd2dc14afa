"""Read the IDX files that MNIST comes in, plain or gzipped, and say exactly what is wrong with a damaged one."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"


class Mnist(NamedTuple):
    """Images (n, 28, 28) and labels (n,) of both parts, as unsigned bytes."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_mnist(folder: str | Path) -> Mnist:
    """The four files of MNIST from a folder, each gzipped or not.

    Two spellings are known: `train-images-idx3-ubyte` and `train-images.idx3-ubyte`.

    Raises:
        NotADirectoryError, FileNotFoundError: the folder or one of the files is not there.
        ValueError: a file is damaged, or does not hold what its name says.
    """
    return Mnist(*_load_part(Path(folder), "train"), *_load_part(Path(folder), "t10k"))


def read_idx(path: str | Path) -> Tensor:
    """One IDX file of unsigned bytes, gzipped or not, as a uint8 tensor of the shape that its header gives.

    The format: two zero bytes, the element type, the number of dimensions, each dimension as a big-endian 32-bit number, then
    the elements.

    Raises:
        ValueError: not an IDX file, cut short, too long, or a gzip that does not unpack.
    """
    path = Path(path)
    content = _unpacked(path)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(
            f"{path} is not an IDX file: it starts with {_hex(content[:4])} instead of 00 00 08 and the number of dimensions. "
            "Was a web page saved in its place?"
        )
    kind, ndim = content[2], content[3]
    if kind != UNSIGNED_BYTE or ndim == 0:
        raise ValueError(
            f"{path} has the IDX magic {_hex(content[:4])}: expected 00 00 08, for unsigned bytes as in MNIST, then at least 01."
        )
    header = 4 + 4 * ndim
    if len(content) < header:
        raise ValueError(f"{path} is cut short: a header of {header} bytes was expected, {len(content)} bytes found. {AGAIN}")
    shape = struct.unpack(f">{ndim}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        fault = "cut short" if len(content) < expected else "too long"
        sizes = " × ".join(map(str, shape))
        raise ValueError(
            f"{path} is {fault}: its header says {sizes}, so {expected} bytes were expected, {len(content)} found. {AGAIN}"
        )
    if expected == header:
        raise ValueError(f"{path} is empty: its header says {' × '.join(map(str, shape))}. {AGAIN}")
    # A bytearray, because a tensor must be able to write to its memory.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)


AGAIN = "Download it again."


def _load_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images and labels of `train` or `t10k`, checked against each other."""
    image_path, label_path = _find(folder, f"{part}-images", 3), _find(folder, f"{part}-labels", 1)
    images, labels = read_idx(image_path), read_idx(label_path)
    for path, tensor, ndim, content in ((image_path, images, 3, "images"), (label_path, labels, 1, "labels")):
        if tensor.ndim != ndim:
            raise ValueError(
                f"{path} has {tensor.ndim} dimensions, {tuple(tensor.shape)}: {content} have {ndim}. Were two files swapped?"
            )
    if images.shape[1:] != (28, 28):
        raise ValueError(f"{image_path} holds images of {images.shape[1]} × {images.shape[2]} pixels: MNIST has 28 × 28.")
    if len(images) != len(labels):
        raise ValueError(
            f"{image_path} holds {len(images)} images, but {label_path} {len(labels)} labels: they do not belong together."
        )
    if labels.max() > 9:
        raise ValueError(f"{label_path} holds the label {int(labels.max())}: digits are 0 to 9.")
    return images, labels


def _find(folder: Path, stem: str, ndim: int) -> Path:
    """The file under any of its usual names."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder. Give the one that holds the four IDX files of MNIST.")
    names = [f"{stem}{separator}idx{ndim}-ubyte{suffix}" for separator in "-." for suffix in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"there is none of {', '.join(names)} in the folder {folder}. Put one of them there.")


def _unpacked(path: Path) -> bytes:
    """The content of a file, unpacked where it is a gzip: what it starts with decides, because browsers change names."""
    content = path.read_bytes()
    if not content.startswith(GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file ({error}). {AGAIN}") from error


def _hex(content: bytes) -> str:
    return content.hex(" ") or "nothing"
