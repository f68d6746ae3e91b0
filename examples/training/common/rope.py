"""Rotary positions of interleaved pairs, as GGUF files of Llama have them."""
import torch

from frozen_llama import FrozenLlama


def rotate(x, positions, base):
    """x [.., rows, heads, d], positions [rows]."""
    d = x.shape[-1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    a = positions[:, None].to(dtype) * base ** (-torch.arange(0, d, 2, device=x.device, dtype=dtype) / d)
    return FrozenLlama.rotate(x, (a.cos()[:, None], a.sin()[:, None]))
