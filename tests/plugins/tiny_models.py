#!/usr/bin/env python3
"""Writes random models of eleven architectures as GGUF, a few hundred KB each, without any library: what llama.cpp does with
heads, windows, sinks, soft-caps and latent keys, at widths that compute in no time. The same seed gives the same bytes.
Usage: tiny_models.py ARCHITECTURE OUT.gguf [SEED], or: tiny_models.py --list"""
import array
import math
import random
import struct
import sys

U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9
BYTES = "bytes"  # a tokenizer whose tokens are the bytes, and "ab"
VOCABULARY = 96
WINDOW = 48  # of sliding layers
KINDS = {int: (U32, "<I"), float: (F32, "<f")}


def text(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def field(key, value):
    if isinstance(value, list):
        return text(key) + struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(text, value))
    if isinstance(value, str):
        return text(key) + struct.pack("<I", STRING) + text(value)
    kind, form = KINDS[type(value)]
    return text(key) + struct.pack("<I", kind) + struct.pack(form, value)


def printable(byte):
    """GPT-2's printable stand-in for a byte."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    return chr(byte if byte in plain else 256 + sum(b not in plain for b in range(byte)))


class Model:
    """Keys and tensors of one architecture. Shapes are in ggml's order: the width of a row comes first."""

    def __init__(self, architecture, seed, *, width, heads, kv_heads, head, layers, ffn, norm="rms", tokenizer=None, **keys):
        self.architecture, self.random = architecture, random.Random(f"{architecture} {seed}")
        self.width, self.heads, self.kv_heads, self.head, self.layers, self.ffn = width, heads, kv_heads, head, layers, ffn
        self.keys = {"context_length": 4096, "embedding_length": width, "block_count": layers, "feed_forward_length": ffn,
                     "attention.head_count": heads, "attention.head_count_kv": kv_heads, "attention.key_length": head,
                     "attention.value_length": head, "rope.dimension_count": head,
                     "attention.layer_norm_rms_epsilon" if norm == "rms" else "attention.layer_norm_epsilon": 1e-5}
        self.keys.update({k.replace("__", "."): v for k, v in keys.items()})
        self.tokenizer = {"model": "none"}
        if tokenizer == BYTES:
            tokens = [printable(b) for b in range(256)] + ["ab"]
            self.tokenizer = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": ["a b"], "eos_token_id": 0}
        vocabulary = self.keys["vocab_size"] = len(self.tokenizer.get("tokens", range(VOCABULARY)))
        self.tensors = []
        self.matrix("token_embd.weight", width, vocabulary, scale=math.sqrt(width))
        self.vector("output_norm.weight", width, about=1)

    def add(self, name, shape, values):
        self.tensors.append((name, shape, array.array("f", values)))

    def matrix(self, name, *shape, scale=1.0):
        """Rows that keep the size of what they are multiplied with, times the scale."""
        deviation = scale / math.sqrt(shape[0])
        self.add(name, shape, (self.random.gauss(0, deviation) for _ in range(math.prod(shape))))

    def vector(self, name, n, about=0.0, by=0.1):
        self.add(name, (n,), (self.random.gauss(about, by) for _ in range(n)))

    def attention(self, i, *, fused=False, biases=False, normed=False, sharp=1.5):
        """Queries and keys a little larger than the rest, so that attention prefers some keys and errors show."""
        at, q, kv = f"blk.{i}.attn_", self.heads * self.head, self.kv_heads * self.head
        self.vector(at + "norm.weight", self.width, about=1)
        if fused:
            self.matrix(at + "qkv.weight", self.width, q + 2 * kv, scale=sharp)
        else:
            for name, n, scale in (("q", q, sharp), ("k", kv, sharp), ("v", kv, 1)):
                self.matrix(f"{at}{name}.weight", self.width, n, scale=scale)
                if biases:
                    self.vector(f"{at}{name}.bias", n)
        if normed:
            self.vector(at + "q_norm.weight", self.head, about=sharp)
            self.vector(at + "k_norm.weight", self.head, about=sharp)
        self.matrix(at + "output.weight", q, self.width)

    def feed_forward(self, i, name="", n=None, experts=()):
        n = n or self.ffn
        for part, shape in (("gate", (self.width, n)), ("up", (self.width, n)), ("down", (n, self.width))):
            self.matrix(f"blk.{i}.ffn_{part}{name}.weight", *shape, *experts)

    def experts(self, i, count, n):
        self.matrix(f"blk.{i}.ffn_gate_inp.weight", self.width, count)
        self.feed_forward(i, "_exps", n, (count,))

    def plain_layers(self, **attention):
        for i in range(self.layers):
            self.attention(i, **attention)
            self.vector(f"blk.{i}.ffn_norm.weight", self.width, about=1)
            self.feed_forward(i)
        return self

    def write(self, path):
        fields = [field("general.architecture", self.architecture), field("general.name", "random")]
        fields += [field(f"tokenizer.ggml.{k}", v) for k, v in self.tokenizer.items()]
        fields += [field(f"{self.architecture}.{k}", v) for k, v in self.keys.items()]
        table, offset = [], 0
        for name, shape, values in self.tensors:
            table.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset))
            offset += (len(values) * 4 + 31) // 32 * 32
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(fields)) + b"".join(fields) + b"".join(table)
        with open(path, "wb") as f:
            f.write(head + bytes(-len(head) % 32))
            for _, _, values in self.tensors:
                if sys.byteorder == "big":
                    values.byteswap()
                data = values.tobytes()
                f.write(data + bytes(-len(data) % 32))


def llama(seed):
    """Llama 3: its rotations are slowed by a table of factors."""
    m = Model("llama", seed, width=64, heads=4, kv_heads=2, head=32, layers=2, ffn=96, rope__freq_base=500000.0)
    m.add("rope_freqs.weight", (16,), [1 + 7 * i / 15 for i in range(16)])
    return m.plain_layers()


def mixtral(seed):
    """Mixtral: llama with eight experts, of which two."""
    m = Model("llama", seed, width=64, heads=4, kv_heads=4, head=32, layers=2, ffn=32, expert_count=8, expert_used_count=2)
    for i in range(m.layers):
        m.attention(i)
        m.vector(f"blk.{i}.ffn_norm.weight", m.width, about=1)
        m.experts(i, 8, m.ffn)
    return m


def smallthinker(seed, window=4096, tokenizer=None):
    """Experts that are chosen before attention; three layers of four slide, the fourth does not rotate."""
    m = Model("smallthinker", seed, width=64, heads=4, kv_heads=2, head=32, layers=5, ffn=32, expert_count=8, expert_used_count=2,
              expert_feed_forward_length=32, expert_gating_func=2, tokenizer=tokenizer, **({"attention__sliding_window": window} if window else {}))
    for i in range(m.layers):
        m.attention(i)
        m.vector(f"blk.{i}.ffn_norm.weight", m.width, about=1)
        m.experts(i, 8, 32)
    return m


def qwen2(seed):
    m = Model("qwen2", seed, width=96, heads=3, kv_heads=1, head=32, layers=2, ffn=64)
    return m.plain_layers(biases=True)


def qwen3(seed):
    m = Model("qwen3", seed, width=64, heads=2, kv_heads=1, head=64, layers=2, ffn=96)
    return m.plain_layers(normed=True)


def gemma(architecture, seed, normed, **keys):
    m = Model(architecture, seed, width=64, heads=4, kv_heads=2, head=64, layers=3, ffn=64, attention__sliding_window=WINDOW, **keys)
    for i in range(m.layers):
        m.attention(i, normed=normed, sharp=2.5 if not normed else 1.5)
        m.vector(f"blk.{i}.post_attention_norm.weight", m.width, about=1)
        m.vector(f"blk.{i}.ffn_norm.weight", m.width, about=1)
        m.feed_forward(i)
        m.vector(f"blk.{i}.post_ffw_norm.weight", m.width, about=1)
    return m


def gemma2(seed):
    """Layers in turn slide; attention's logits are capped, low enough here that the cap bites."""
    return gemma("gemma2", seed, False, attn_logit_softcapping=5.0, final_logit_softcapping=30.0)


def gemma3(seed):
    return gemma("gemma3", seed, True, attention__sliding_window_pattern=3, rope__freq_base=1e6, rope__freq_base_swa=1e4)


def phi3(seed):
    """One matrix for queries, keys and values; long contexts rotate by factors of their own."""
    m = Model("phi3", seed, width=96, heads=3, kv_heads=3, head=32, layers=2, ffn=48, rope__scaling__original_context_length=256,
              rope__scaling__attn_factor=1.1)
    m.add("rope_factors_long.weight", (16,), [1 + i / 4 for i in range(16)])
    m.add("rope_factors_short.weight", (16,), [1 + i / 16 for i in range(16)])
    for i in range(m.layers):
        m.attention(i, fused=True)
        m.vector(f"blk.{i}.ffn_norm.weight", m.width, about=1)
        m.matrix(f"blk.{i}.ffn_up.weight", m.width, 2 * m.ffn)
        m.matrix(f"blk.{i}.ffn_down.weight", m.ffn, m.width)
    return m


def gpt_oss(seed):
    """Sinks in every head, every other layer slides; experts with biases."""
    count, n = 4, 32
    m = Model("gpt-oss", seed, width=64, heads=4, kv_heads=2, head=32, layers=2, ffn=n, attention__sliding_window=WINDOW, expert_count=count,
              expert_used_count=2, expert_feed_forward_length=n)
    m.matrix("output.weight", m.width, VOCABULARY)
    for i in range(m.layers):
        m.attention(i, biases=True)
        m.vector(f"blk.{i}.attn_output.bias", m.width)
        m.vector(f"blk.{i}.attn_sinks.weight", m.heads, about=3.0, by=1.0)
        m.vector(f"blk.{i}.post_attention_norm.weight", m.width, about=1)
        m.experts(i, count, n)
        m.vector(f"blk.{i}.ffn_gate_inp.bias", count)
        for part, width in (("gate", n), ("up", n), ("down", m.width)):
            m.add(f"blk.{i}.ffn_{part}_exps.bias", (width, count), (m.random.gauss(0, 0.1) for _ in range(width * count)))
    return m


def deepseek2(seed):
    """Latent attention: all heads read the same keys, latent and rotated parts side by side; values are the latent part."""
    latent, rotated, plain, value, count, n, rank = 64, 32, 32, 32, 4, 32, 48
    m = Model("deepseek2", seed, width=64, heads=4, kv_heads=1, head=latent + rotated, layers=2, ffn=64, attention__value_length=latent,
              attention__key_length_mla=plain + rotated, attention__value_length_mla=value, attention__q_lora_rank=rank,
              attention__kv_lora_rank=latent, rope__dimension_count=rotated, leading_dense_block_count=1, expert_count=count, expert_used_count=2,
              expert_feed_forward_length=n, expert_shared_count=1, expert_weights_scale=1.0)
    for i in range(m.layers):
        at = f"blk.{i}.attn_"
        m.vector(at + "norm.weight", m.width, about=1)
        m.vector(at + "q_a_norm.weight", rank, about=1)
        m.vector(at + "kv_a_norm.weight", latent, about=1)
        m.matrix(at + "q_a.weight", m.width, rank)
        m.matrix(at + "q_b.weight", rank, m.heads * (plain + rotated), scale=1.5)
        m.matrix(at + "kv_a_mqa.weight", m.width, latent + rotated, scale=1.5)
        m.matrix(at + "k_b.weight", plain, latent, m.heads)
        m.matrix(at + "v_b.weight", latent, value, m.heads)
        m.matrix(at + "output.weight", m.heads * value, m.width)
        m.vector(f"blk.{i}.ffn_norm.weight", m.width, about=1)
        if i == 0:
            m.feed_forward(i)
        else:
            m.experts(i, count, n)
            m.feed_forward(i, "_shexp", n)
    return m


def stablelm(seed):
    """Layer norms with biases; a quarter of each head rotates."""
    m = Model("stablelm", seed, width=96, heads=3, kv_heads=3, head=32, layers=2, ffn=64, norm="layer", rope__dimension_count=8)
    m.vector("output_norm.bias", m.width)
    m.matrix("output.weight", m.width, VOCABULARY)
    for i in range(m.layers):
        m.attention(i, biases=True)
        m.vector(f"blk.{i}.attn_norm.bias", m.width)
        m.vector(f"blk.{i}.ffn_norm.weight", m.width, about=1)
        m.vector(f"blk.{i}.ffn_norm.bias", m.width)
        m.feed_forward(i)
    return m


MODELS = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3, "gemma2": gemma2, "gemma3": gemma3, "phi3": phi3, "mixtral": mixtral, "smallthinker": smallthinker,
          "gpt-oss": gpt_oss, "deepseek2": deepseek2, "stablelm": stablelm}


def write(name, path, seed=1):
    MODELS[name](seed).write(path)


if __name__ == "__main__":
    if sys.argv[1:] == ["--list"]:
        print(*MODELS, sep="\n")
    elif len(sys.argv) in (3, 4) and sys.argv[1] in MODELS:
        write(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) == 4 else 1)
    else:
        sys.exit(__doc__)
