"""Writes the bundled model as GGUF version 3, matrices in Q8_0 (blocks of 32 int8 with one fp16 scale), norms and routers
in F32; experts in the layout of llama.cpp."""
import json
import os
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "common"))
import gguf  # noqa: E402


def kind(name, w):
    return gguf.TYPE_Q8_0 if w.ndim > 1 and "router" not in name and "gate_inp" not in name else gguf.TYPE_F32


def round_to_q8_0(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if kind(name, p) == gguf.TYPE_Q8_0:
                scale, q = gguf.quantise(p.float().cpu().numpy())
                p.copy_(torch.from_numpy((q * scale[..., None].astype(np.float32)).reshape(p.shape)))


def write(model, a, tokenizer, path, head, rope_base, context, eps):
    t = json.loads(tokenizer.to_str())["model"]
    tokens = [s for s, _ in sorted(t["vocab"].items(), key=lambda kv: kv[1])]
    merges = [m if isinstance(m, str) else " ".join(m) for m in t["merges"]]
    key, array = gguf.key, gguf.array
    keys = [
        key("general.architecture", gguf.STRING, "llama"), key("general.name", gguf.STRING, "sluice-mini-moe" if a.experts else "sluice-mini"),
        key("general.license", gguf.STRING, "apache-2.0"),
        key("llama.context_length", gguf.U32, context), key("llama.embedding_length", gguf.U32, a.width),
        key("llama.block_count", gguf.U32, a.layers), key("llama.feed_forward_length", gguf.U32, a.ffn),
        key("llama.attention.head_count", gguf.U32, a.heads), key("llama.attention.head_count_kv", gguf.U32, a.kv_heads),
        key("llama.attention.layer_norm_rms_epsilon", gguf.F32, eps), key("llama.rope.freq_base", gguf.F32, rope_base),
        key("llama.rope.dimension_count", gguf.U32, head), key("llama.vocab_size", gguf.U32, a.vocab),
        key("general.file_type", gguf.U32, 7), key("tokenizer.ggml.model", gguf.STRING, "gpt2"),
        key("tokenizer.ggml.pre", gguf.STRING, "gpt-2"), array("tokenizer.ggml.tokens", gguf.STRING, tokens),
        array("tokenizer.ggml.token_type", gguf.I32, [3] + [1] * (len(tokens) - 1)),
        array("tokenizer.ggml.merges", gguf.STRING, merges), key("tokenizer.ggml.bos_token_id", gguf.U32, 0),
        key("tokenizer.ggml.eos_token_id", gguf.U32, 0), key("tokenizer.ggml.add_bos_token", gguf.BOOL, False)]
    if a.experts:
        keys += [key("llama.expert_count", gguf.U32, a.experts), key("llama.expert_used_count", gguf.U32, a.top)]
    weights = [("token_embd.weight", model.embed.weight), ("output_norm.weight", model.norm)]
    for i, b in enumerate(model.blocks):
        weights += [(f"blk.{i}.{n}.weight", w) for n, w in (
            ("attn_norm", b.attn_norm), ("attn_q", b.q.weight), ("attn_k", b.k.weight), ("attn_v", b.v.weight),
            ("attn_output", b.o.weight), ("ffn_norm", b.ffn_norm))]
        f = b.ffn
        weights += [(f"blk.{i}.{n}.weight", w) for n, w in (
            (("ffn_gate_inp", f.router.weight), ("ffn_gate_exps", f.gate), ("ffn_up_exps", f.up), ("ffn_down_exps", f.down))
            if a.experts else
            (("ffn_gate", f.gate.weight), ("ffn_up", f.up.weight), ("ffn_down", f.down.weight)))]
    gguf.write(path, keys, [(n, w.detach().float().cpu().numpy(), kind(n, w)) for n, w in weights])
