"""A Llama decoder with frozen weights, read from GGUF, taken apart into the pieces that routers sit between."""
import torch
import torch.nn.functional as F

import gguf


def full(x):
    """At least single precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class FrozenLlama:
    def __init__(self, path, device):
        keys, t = gguf.read(path)
        key = lambda k: keys[f"llama.{k}"]  # noqa: E731
        self.layers, self.width, self.heads = key("block_count"), key("embedding_length"), key("attention.head_count")
        self.kv_heads, self.head = key("attention.head_count_kv"), key("rope.dimension_count")
        self.eps, self.rope_base = key("attention.layer_norm_rms_epsilon"), key("rope.freq_base")
        self.name, self.keys, self.device = keys["general.name"], keys, device
        self.experts_used = keys.get("llama.expert_used_count", 0)  # a token; 0: a dense FFN
        self.w = {k: torch.from_numpy(v.copy()).to(device) for k, v in t.items()}

    def tokenizer(self):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        tokens = self.keys["tokenizer.ggml.tokens"]
        merges = [tuple(m.split(" ")) for m in self.keys["tokenizer.ggml.merges"]]
        tok = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tok.decoder = decoders.ByteLevel()
        return tok

    def linear(self, name, x):
        return x @ self.w[name + ".weight"].to(x.dtype).T

    def norm(self, name, x):
        return F.rms_norm(x, (self.width,), self.w[name + ".weight"].to(x.dtype), self.eps)

    def embed(self, ids, dtype=torch.float32):
        return F.embedding(ids, self.w["token_embd.weight"]).to(dtype)

    def angles(self, t):
        freq = self.rope_base ** (-torch.arange(0, self.head, 2, device=self.device, dtype=torch.float32) / self.head)
        a = torch.arange(t, device=self.device, dtype=torch.float32)[:, None] * freq
        return a.cos()[None, :, None], a.sin()[None, :, None]

    @staticmethod
    def rotate(x, angles):
        cos, sin = angles
        a, b = full(x[..., 0::2]), full(x[..., 1::2])
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)

    def qkv(self, layer, h):
        """h [b, t, width], normalised -> q [b, t, heads, d] and k, v [b, t, kv_heads, d], before RoPE."""
        b, t, _ = h.shape
        q = self.linear(f"blk.{layer}.attn_q", h).view(b, t, self.heads, self.head)
        k = self.linear(f"blk.{layer}.attn_k", h).view(b, t, self.kv_heads, self.head)
        return q, k, self.linear(f"blk.{layer}.attn_v", h).view(b, t, self.kv_heads, self.head)

    def attend(self, q, k, v, mask=None):
        """After RoPE. Causal when there is no mask -> [b, t, heads * d]."""
        g = self.heads // self.kv_heads
        q, k, v = q.transpose(1, 2), k.transpose(1, 2).repeat_interleave(g, 1), v.transpose(1, 2).repeat_interleave(g, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return y.transpose(1, 2).flatten(-2)

    def out(self, layer, o):
        return self.linear(f"blk.{layer}.attn_output", o)

    def ffn(self, layer, h):
        return self.linear(f"blk.{layer}.ffn_down",
                           F.silu(self.linear(f"blk.{layer}.ffn_gate", h)) * self.linear(f"blk.{layer}.ffn_up", h))

    def experts(self, layer, h, p):
        """h [.., width], p [.., experts] the router's probabilities: the best experts' outputs by their shares of the sum."""
        x, p = h.flatten(0, -2), p.flatten(0, -2)
        weight, chosen = p.topk(self.experts_used, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        matrices = [self.w[f"blk.{layer}.ffn_{part}_exps.weight"].to(h.dtype) for part in ("gate", "up", "down")]
        y = torch.zeros_like(x)
        for e in range(p.shape[-1]):
            token, slot = (chosen == e).nonzero(as_tuple=True)
            gate, up, down = (m[e].T for m in matrices)
            of_one = (F.silu(x[token] @ gate) * (x[token] @ up)) @ down
            y = y.index_add(0, token, of_one * weight[token, slot, None].to(h.dtype))
        return y.view_as(h)

    def logits(self, x):
        name = "output.weight" if "output.weight" in self.w else "token_embd.weight"
        return self.norm("output_norm", x) @ self.w[name].to(x.dtype).T


@torch.no_grad()  # of a generator: the graph is off inside it only
def layers(model, ids, dtype=torch.bfloat16):
    """The dense model, layer by layer: yields (layer, q, k before RoPE, q, k after it) of one sequence."""
    x, angles = model.embed(ids[None], dtype), model.angles(len(ids))
    for layer in range(model.layers):
        q, k, v = model.qkv(layer, model.norm(f"blk.{layer}.attn_norm", x))
        turned = model.rotate(q, angles), model.rotate(k, angles)
        yield layer, q[0], k[0], turned[0][0], turned[1][0]
        x = x + model.out(layer, model.attend(*turned, v))
        x = x + model.ffn(layer, model.norm(f"blk.{layer}.ffn_norm", x))
