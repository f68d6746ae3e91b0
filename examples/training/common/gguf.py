"""Reads and writes GGUF version 3 files: metadata and F32, F16 and Q8_0 tensors, as numpy arrays."""
import struct

import numpy as np

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TYPE_F32, TYPE_F16, TYPE_Q8_0, ALIGN = 0, 1, 8, 32
_FORMAT = {0: "<B", 1: "<b", 2: "<H", 3: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", 10: "<Q", 11: "<q", 12: "<d"}


def quantise(w):
    """[rows, cols] float -> (scale fp16 [rows, cols/32], int8 [rows, cols/32, 32])."""
    blocks = w.reshape(w.shape[0], -1, 32)
    scale = (np.abs(blocks).max(-1) / 127.0).astype(np.float16)
    inv = np.where(scale > 0, 1.0 / np.maximum(scale.astype(np.float32), 1e-30), 0.0)
    return scale, np.clip(np.rint(blocks * inv[..., None]), -127, 127).astype(np.int8)


def _string(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def _value(kind, v):
    return _string(v) if kind == STRING else struct.pack(_FORMAT[kind], v)


def key(name, kind, v):
    return _string(name) + struct.pack("<I", kind) + _value(kind, v)


def array(name, kind, values):
    return _string(name) + struct.pack("<IIQ", ARRAY, kind, len(values)) + b"".join(_value(kind, v) for v in values)


def write(path, keys, tensors):
    """keys: what key() and array() made; tensors: (name, array, TYPE_*)."""
    infos, blobs, offset = [], [], 0
    for name, x, kind in tensors:
        x = np.asarray(x, np.float32)
        if kind == TYPE_Q8_0:
            scale, q = quantise(x)
            raw = np.concatenate([scale[..., None].view(np.int8), q], -1).tobytes()
        else:
            raw = x.astype("<f2" if kind == TYPE_F16 else "<f4").tobytes()
        infos.append(_string(name) + struct.pack("<I", x.ndim) + struct.pack(f"<{x.ndim}Q", *reversed(x.shape)) +
                     struct.pack("<IQ", kind, offset))
        raw += b"\0" * (-len(raw) % ALIGN)
        blobs.append(raw)
        offset += len(raw)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(infos)
    with open(path, "wb") as f:
        f.write(head + b"\0" * (-len(head) % ALIGN) + b"".join(blobs))


def read(path):
    """(keys, tensors): a dict of values and a dict of float32 arrays."""
    data, at = open(path, "rb").read(), 8

    def take(fmt):
        nonlocal at
        v, = struct.unpack_from(fmt, data, at)
        at += struct.calcsize(fmt)
        return v

    def text():
        nonlocal at
        n = take("<Q")
        at += n
        return data[at - n:at].decode()

    def value(kind):
        if kind == STRING:
            return text()
        if kind == ARRAY:
            inner, n = take("<I"), take("<Q")
            return [value(inner) for _ in range(n)]
        return take(_FORMAT[kind])

    count, keys = take("<Q"), {}
    for _ in range(take("<Q")):
        name = text()
        keys[name] = value(take("<I"))
    infos = []
    for _ in range(count):
        name = text()
        shape = [take("<Q") for _ in range(take("<I"))][::-1]
        infos.append((name, shape, take("<I"), take("<Q")))
    base, tensors = (at + ALIGN - 1) // ALIGN * ALIGN, {}
    for name, shape, kind, offset in infos:
        n = int(np.prod(shape))
        if kind == TYPE_Q8_0:
            raw = np.frombuffer(data, np.int8, n // 32 * 34, base + offset).reshape(-1, 34)
            x = raw[:, :2].copy().view(np.float16).astype(np.float32) * raw[:, 2:]
        else:
            x = np.frombuffer(data, "<f2" if kind == TYPE_F16 else "<f4", n, base + offset)
        tensors[name] = np.asarray(x, np.float32).reshape(shape)
    return keys, tensors
