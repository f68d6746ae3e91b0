"""Images of 28 x 28 grey pixels with labels from IDX files, as Debian's dataset-fashion-mnist ships them (`apt-get download
dataset-fashion-mnist; dpkg -x dataset-fashion-mnist*.deb DIR`, or installed), and batches drawn of them."""
import gzip
import lzma
import os

import numpy as np
import torch

FOLDER = "/usr/share/datasets/fashion-mnist"
SIDE, FRAGMENT = 28, 8


def _idx(folder, name):
    for suffix, opened in ((".gz", gzip.open), (".xz", lzma.open), ("", open)):
        path = os.path.join(folder, name + suffix)
        if not os.path.exists(path):
            continue
        with opened(path, "rb") as f:
            data = f.read()
        shape = [int.from_bytes(data[4 + 4 * i:8 + 4 * i], "big") for i in range(data[3])]
        return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape).copy())
    raise SystemExit(f"no {name} (.gz, .xz) in {folder}: `apt-get download dataset-fashion-mnist`, then `dpkg -x` it and name "
                     "its usr/share/datasets/fashion-mnist")


def load(folder, device):
    """{"train" | "test": (images [n, 28, 28] in 0..1, labels [n])}, the split of the files."""
    made = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        images, labels = _idx(folder, name + "-images-idx3-ubyte"), _idx(folder, name + "-labels-idx1-ubyte")
        n = min(len(images), len(labels))
        made[split] = images[:n].to(device).float() / 255, labels[:n].to(device).long()
    return made


def _pasted(images, side, y, x, height, width, top, left):
    """Canvases [b, side, side] whose pixels from (y, x) on are those of images [b, 28, 28] from (top, left) on."""
    at = torch.arange(side, device=images.device)
    rows, columns = at - y[:, None], at - x[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    rows, columns = ((i + first[:, None]).clamp(0, SIDE - 1) for i, first in ((rows, top), (columns, left)))
    some = torch.arange(len(images), device=images.device)[:, None, None]
    return images[some, rows[:, :, None], columns[:, None]] * inside


def canvases(images, index, side, clutter, generator, train):
    """[b, side, side]: every image at a random place (where the canvas is as large as the image: in training, moved by up to
    two pixels; in training, half of them mirrored), and `clutter` random fragments of other images."""
    b, device = len(index), images.device
    draw = lambda low, high: torch.randint(low, high, (b,), generator=generator, device=device)  # noqa: E731
    none = torch.zeros(b, dtype=torch.long, device=device)
    chosen = images[index]
    if train:
        chosen = torch.where((draw(0, 2) == 1)[:, None, None], chosen.flip(-1), chosen)
    far = side - SIDE
    y, x = (draw(0, far + 1) if far > 0 else draw(-2, 3) if train else none for _ in range(2))
    canvas = _pasted(chosen, side, y, x, SIDE, SIDE, none, none)
    for _ in range(clutter):
        others = images[draw(0, len(images))]
        y, x, top, left = draw(0, side - FRAGMENT + 1), draw(0, side - FRAGMENT + 1), draw(4, 17), draw(4, 17)
        canvas = torch.maximum(canvas, _pasted(others, side, y, x, FRAGMENT, FRAGMENT, top, left))
    return canvas
