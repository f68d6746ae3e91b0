"""A small decoder whose attention is given, and dense attention."""
import torch
import torch.nn.functional as F
from torch import nn

from frozen_llama import full
from rope import rotate


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        x = full(x)
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * self.weight


def linear(inputs, outputs, scale=1.0):
    made = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(made.weight, std=scale * inputs ** -0.5)
    return made


def masked(q, k, v, seen=None):
    """Softmax attention of q [b, t, heads, d] over k, v [b, s, kv heads, d]; `seen` of a shape that goes with [b, heads,
    t, s] and some key seen by every query; none: causal."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    if seen is not None:
        seen = seen.expand(*q.shape[:3], k.shape[2])
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None).transpose(1, 2)
    if seen is None:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (logits.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def band(t, window, device):
    """[t, t]: the last `window` keys of each query."""
    i = torch.arange(t, device=device)
    return (i[None] <= i[:, None]) & (i[None] > i[:, None] - window)


class Mixed(nn.Module):
    """Every channel a sum over the last tokens, begun as the token itself: a decoder that has it need not spend a layer on
    telling what stands before a token."""

    def __init__(self, width, tokens=4):
        super().__init__()
        self.weight = nn.Parameter(torch.cat((0.3 * torch.randn(tokens - 1, width), torch.ones(1, width))))

    def forward(self, x):
        n = len(self.weight)
        return sum(F.pad(x, (0, 0, n - 1 - i, 0))[:, :x.shape[1]] * w for i, w in enumerate(self.weight))


class Attention(nn.Module):
    """Projections and rotary positions; `attend` is the method's. `pairs`: what it reads of a sequence, set by every call
    where `measure` is: (query, key) pairs a sequence and query head, summaries counted as keys."""

    def __init__(self, a):
        super().__init__()
        self.heads, self.kv_heads, self.d, self.base = a.heads, a.kv_heads, a.width // a.heads, a.rope_base
        self.random, self.exploring = a.select == "random", False
        self.q, self.k, self.v = (linear(a.width, n * self.d) for n in (self.heads, self.kv_heads, self.kv_heads))
        self.out = linear(self.heads * self.d, a.width, (2 * a.layers) ** -0.5)
        self.measure, self.pairs, self.noise = False, 0.0, None

    def prepared(self, q, k):
        """Before RoPE."""
        return q, k

    def forward(self, h):
        q, k, v = (f(h).unflatten(-1, (-1, self.d)) for f in (self.q, self.k, self.v))
        q, k = self.prepared(q, k)
        at = torch.arange(h.shape[1], device=h.device)
        turned = rotate(q, at, self.base), rotate(k, at, self.base)
        return self.out(self.attend(h, q, k, *turned, v).flatten(-2).to(h.dtype))

    def attend(self, h, q_pre, k_pre, q, k, v):
        raise NotImplementedError

    @property
    def drawn(self):
        """Whether this call selects at random."""
        return self.random or self.exploring

    def uniform(self, like):
        """Scores of a random selection, as many as `like`."""
        return torch.rand(like.shape, device=like.device, generator=self.noise)

    def loss(self):
        """What the last call adds to the training loss."""
        return 0.0

    def after_step(self):
        """Called after every step of the optimiser."""


class Dense(Attention):
    def attend(self, h, q_pre, k_pre, q, k, v):
        if self.measure:
            self.pairs = h.shape[1] * (h.shape[1] + 1) / 2
        return masked(q, k, v)


class Block(nn.Module):
    def __init__(self, a, attention):
        super().__init__()
        self.attention, self.norms = attention(a), nn.ModuleList(Norm(a.width) for _ in range(2))
        self.mixed = Mixed(a.width)
        self.gate, self.up = linear(a.width, a.ffn), linear(a.width, a.ffn)
        self.down = linear(a.ffn, a.width, (2 * a.layers) ** -0.5)

    def forward(self, x):
        x = x + self.attention(self.mixed(self.norms[0](x)))
        h = self.norms[1](x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """`a`: layers, width, heads, kv_heads, ffn, rope_base, select; `attention`: makes one layer's of `a`."""

    def __init__(self, a, attention, vocab):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(vocab, a.width), Norm(a.width), linear(a.width, vocab)
        self.blocks = nn.ModuleList(Block(a, attention) for _ in range(a.layers))

    def forward(self, ids, rows):
        """Logits [b, rows, vocab] of what follows the tokens at `rows`."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, rows]))

    def attentions(self):
        return [b.attention for b in self.blocks]
