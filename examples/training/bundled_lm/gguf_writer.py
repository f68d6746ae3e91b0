"""Writes a Llama model as GGUF version 3, matrices in Q8_0 (blocks of 32 int8 with one fp16 scale), norms in F32."""
import struct

import numpy as np
import torch

U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
TYPE_F32, TYPE_Q8_0, ALIGN = 0, 8, 32


def _quantise(w):
    """[rows, cols] float -> (scale fp16 [rows, cols/32], int8 [rows, cols/32, 32])."""
    blocks = w.reshape(w.shape[0], -1, 32)
    scale = (np.abs(blocks).max(-1) / 127.0).astype(np.float16)
    inv = np.where(scale > 0, 1.0 / np.maximum(scale.astype(np.float32), 1e-30), 0.0)
    return scale, np.clip(np.rint(blocks * inv[..., None]), -127, 127).astype(np.int8)


def round_to_q8_0(model):
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                scale, q = _quantise(p.float().cpu().numpy())
                p.copy_(torch.from_numpy((q * scale[..., None].astype(np.float32)).reshape(p.shape)))


def _string(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def _value(kind, v):
    if kind == STRING:
        return _string(v)
    return struct.pack({U32: "<I", F32: "<f", BOOL: "<?", I32: "<i"}[kind], v)


def _key(name, kind, v):
    return _string(name) + struct.pack("<I", kind) + _value(kind, v)


def _array(name, kind, values):
    return _string(name) + struct.pack("<IIQ", ARRAY, kind, len(values)) + b"".join(_value(kind, v) for v in values)


def write(model, a, tokenizer, path, head, rope_base, context, eps):
    import json
    t = json.loads(tokenizer.to_str())["model"]
    tokens = [s for s, _ in sorted(t["vocab"].items(), key=lambda kv: kv[1])]
    merges = [m if isinstance(m, str) else " ".join(m) for m in t["merges"]]
    keys = [
        _key("general.architecture", STRING, "llama"), _key("general.name", STRING, "sluice-mini"),
        _key("general.license", STRING, "apache-2.0"),
        _key("llama.context_length", U32, context), _key("llama.embedding_length", U32, a.width),
        _key("llama.block_count", U32, a.layers), _key("llama.feed_forward_length", U32, a.ffn),
        _key("llama.attention.head_count", U32, a.heads), _key("llama.attention.head_count_kv", U32, a.kv_heads),
        _key("llama.attention.layer_norm_rms_epsilon", F32, eps), _key("llama.rope.freq_base", F32, rope_base),
        _key("llama.rope.dimension_count", U32, head), _key("llama.vocab_size", U32, a.vocab),
        _key("general.file_type", U32, 7), _key("tokenizer.ggml.model", STRING, "gpt2"),
        _key("tokenizer.ggml.pre", STRING, "gpt-2"), _array("tokenizer.ggml.tokens", STRING, tokens),
        _array("tokenizer.ggml.token_type", I32, [3] + [1] * (len(tokens) - 1)),
        _array("tokenizer.ggml.merges", STRING, merges), _key("tokenizer.ggml.bos_token_id", U32, 0),
        _key("tokenizer.ggml.eos_token_id", U32, 0), _key("tokenizer.ggml.add_bos_token", BOOL, False)]
    tensors = [("token_embd.weight", model.embed.weight), ("output_norm.weight", model.norm)]
    for i, b in enumerate(model.blocks):
        tensors += [(f"blk.{i}.{n}.weight", w) for n, w in (
            ("attn_norm", b.attn_norm), ("attn_q", b.q.weight), ("attn_k", b.k.weight), ("attn_v", b.v.weight),
            ("attn_output", b.o.weight), ("ffn_norm", b.ffn_norm), ("ffn_gate", b.gate.weight),
            ("ffn_up", b.up.weight), ("ffn_down", b.down.weight))]
    infos, blobs, offset = [], [], 0
    for name, w in tensors:
        x = w.detach().float().cpu().numpy()
        if x.ndim == 2:
            scale, q = _quantise(x)
            raw = np.concatenate([scale[..., None].view(np.int8), q], -1).tobytes()
            kind = TYPE_Q8_0
        else:
            raw, kind = x.astype("<f4").tobytes(), TYPE_F32
        infos.append(_string(name) + struct.pack("<I", x.ndim) + struct.pack(f"<{x.ndim}Q", *reversed(x.shape)) +
                     struct.pack("<IQ", kind, offset))
        raw += b"\0" * (-len(raw) % ALIGN)
        blobs.append(raw)
        offset += len(raw)
    head_bytes = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(infos)
    with open(path, "wb") as f:
        f.write(head_bytes + b"\0" * (-len(head_bytes) % ALIGN) + b"".join(blobs))
