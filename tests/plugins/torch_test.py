#!/usr/bin/env python3
"""The PyTorch ops against PyTorch itself: torch_test.py sluice_torch.so. Exit status 77: no PyTorch here."""
import math
import sys
import unittest

try:
    import torch
except ImportError:
    print("skipped: python3-torch is not installed")
    sys.exit(77)
if len(sys.argv) < 2:
    print("skipped: plugins/torch was not built")
    sys.exit(77)
torch.ops.load_library(sys.argv.pop(1))
attend, route = torch.ops.sluice.attend, torch.ops.sluice.route


def dense(q, k, v, scale=None):
    """In double precision."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    t, s = q.shape[2], k.shape[2]
    logits = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[3]) if scale is None else scale)
    hidden = torch.arange(s)[None, :] > torch.arange(s - t, s)[:, None]
    return torch.softmax(logits.masked_fill(hidden, -math.inf), -1) @ v


def tensors(b=2, h=4, kv=2, t=70, s=70, d=16, dv=24, dtype=torch.float32):
    torch.manual_seed(1)
    return (torch.randn(b, h, t, d), torch.randn(b, kv, s, d).to(dtype), torch.randn(b, kv, s, dv).to(dtype))


class Attend(unittest.TestCase):
    def close(self, got, want, within):
        self.assertLess((got - want).abs().max().item(), within)

    def test_dense_is_attention(self):
        for shape in (dict(), dict(t=1, s=300), dict(t=33, s=129, h=6, kv=1), dict(b=1, h=1, kv=1, t=1, s=1, d=1, dv=1)):
            q, k, v = tensors(**shape)
            o, density = attend(q, k, v)
            self.assertEqual(o.dtype, torch.float32)
            self.assertEqual(density, 1)
            self.close(o, dense(q, k, v), 2e-5)
        q, k, v = tensors()
        self.close(attend(q, k, v, "dense", 0.3)[0], dense(q, k, v, 0.3), 2e-5)

    def test_half_caches(self):
        for dtype, within in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
            q, k, v = tensors(dtype=dtype)
            self.close(attend(q, k, v)[0], dense(q, k, v), within)

    def test_reads_tensors_where_they_lie(self):
        q, k, v = tensors()
        want = attend(q, k, v)[0]
        apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]  # [B, T, H, D] in memory
        self.assertFalse(apart[0].is_contiguous())
        self.assertTrue(torch.equal(attend(*apart)[0], want))
        wide = torch.randn(2, 2, 70, 99)  # a part of a larger tensor
        wide[..., 3:19] = k
        self.assertTrue(torch.equal(attend(q, wide[..., 3:19], v)[0], want))

    def test_routing_skips_what_it_says(self):
        q, k, v = tensors(b=1, t=2048, s=2048)
        o, density = attend(q, k, v, "sink_window:sink=64,window=256")
        self.assertLess(density, 0.3)
        # Over what it sees it is exact: the last query, by hand.
        seen = torch.zeros(2048, dtype=torch.bool)
        seen[:64], seen[2048 - 256:] = True, True
        want = dense(q[:, :, -1:], k[:, :, seen], v[:, :, seen])
        self.close(o[:, :, -1:], want, 2e-5)
        again = attend(q, k, v, "sink_window:sink=64,window=256")
        self.assertTrue(torch.equal(again[0], o))
        self.assertEqual(again[1], density)
        full = attend(q, k, v, "mean_pool:k=1000")
        self.close(full[0], dense(q, k, v), 2e-5)
        layered = attend(q, k, v, "per_layer(dense | sink_window:sink=64,window=256)", None, 1)
        self.assertTrue(torch.equal(layered[0], o))

    def test_decode_after_growth(self):
        for s in range(250, 262):  # what was prepared for 256 is left and made anew for 512
            q, k, v = tensors(t=1, s=s)
            self.close(attend(q, k, v)[0], dense(q, k, v), 2e-5)

    def test_attention_without_a_causal_mask(self):
        g = torch.Generator().manual_seed(12)
        q, k, v = (torch.randn(2, 4, 36, 16, generator=g) for _ in range(3))
        o, density = attend(q, k, v, "biformer:k=-2")
        self.close(o, (q @ k.transpose(-1, -2) / 4).softmax(-1) @ v, 2e-5)
        self.assertEqual(density, 1)
        # Regions of 2 x 2 of a 6 x 6 image, three of nine, by means over all heads.
        region = torch.arange(36).view(6, 6)[::2, ::2].flatten()[:, None] + torch.tensor([0, 1, 6, 7])
        mean = lambda x: x[:, :, region].mean(3).transpose(1, 2).flatten(2)  # noqa: E731
        chosen = (mean(q) @ mean(k).transpose(1, 2)).topk(3, -1).indices
        seen = torch.zeros(2, 1, 36, 36, dtype=torch.bool)
        for b in range(2):
            for own in range(9):
                seen[b, 0, region[own][:, None], region[chosen[b, own]].flatten()] = True
        o, density = attend(q, k, v, "biformer:regions=3,k=3", 0.125)
        self.close(o, (q @ k.transpose(-1, -2) / 8).masked_fill(~seen, -torch.inf).softmax(-1) @ v, 2e-5)
        self.assertAlmostEqual(density, 1 / 3)

    def test_says_what_is_wrong(self):
        q, k, v = tensors()
        for bad, text in (
            (lambda: attend(q[0], k, v), "q has shape [4, 70, 16], wanted 4 dimensions"),
            (lambda: attend(q.half(), k, v), "q is Half, wanted float32"),
            (lambda: attend(q, k.double(), v), "k is Double; allowed: float32, bfloat16, float16"),
            (lambda: attend(q, k.half(), v), "k is Half and v is Float"),
            (lambda: attend(q, k[:, :, :60], v), "do not fit"),
            (lambda: attend(q, k[:, :, :, ::2], v), "k has stride 2, wanted 1: call contiguous() first"),
            (lambda: attend(q[:, :3], k, v), "H a multiple of KV"),
            (lambda: attend(q[:, :, :0], k, v), "q is empty"),
            (lambda: attend(q, k, v, "nobody"), "no method 'nobody'; known:"),
            (lambda: attend(q, k, v, "mean_pool:k=-1"), "mean_pool: k"),
        ):
            with self.assertRaises(ValueError) as caught:
                bad()
            self.assertIn(text, str(caught.exception))
        with self.assertRaisesRegex(RuntimeError, "call it under torch.no_grad"):
            attend(q.requires_grad_(), k, v)
        with torch.no_grad():
            attend(q, k, v)


class Route(unittest.TestCase):
    def test_an_assignment(self):
        x = torch.zeros(6, 4)
        row_ptr, unit, weight, dropped = route(x, "ftp_static")
        self.assertEqual(row_ptr.tolist(), [0, 1, 2, 3, 4, 5, 6])
        self.assertEqual(len(unit), 6)
        self.assertEqual(len(weight), 6)
        self.assertEqual(dropped.shape, (0, 2))
        x[:, 0] = torch.arange(6) / 6
        skipped = route(x, "ftp_static:sparsity=0.5")[1]
        self.assertEqual(sorted(set(skipped.tolist())), [0, 1])

    def test_experts_by_their_scores(self):
        scores = torch.tensor([[0.0, 2, 1, -1], [3, 0, 0, 3]])
        row_ptr, unit, weight, dropped = route(scores, "expert/top_k:k=2", 4, True)
        self.assertEqual(row_ptr.tolist(), [0, 2, 4])
        self.assertEqual(unit.tolist(), [1, 2, 0, 3])
        torch.testing.assert_close(weight[:2], torch.softmax(torch.tensor([2.0, 1]), 0))
        dropped = route(scores, "expert/top_k:k=1,capacity=0.1,min_capacity=0", 4, True)[3]
        self.assertEqual(dropped.tolist(), [])

    def test_says_what_is_wrong(self):
        x = torch.zeros(6, 4)
        for bad, text in (
            (lambda: route(x, "nobody"), "no method 'nobody'; known:"),
            (lambda: route(x[0], "ftp_static"), "x has shape [4], wanted 2 dimensions"),
            (lambda: route(x.double(), "ftp_static"), "x is Double, wanted float32"),
            (lambda: route(x, "ftp_static", 0), "0 units"),
            (lambda: route(x, "ftp_static", 3), "wanted 2 units"),
            (lambda: route(x, "expert/top_k:k=2", 4), "expert/top_k reads scores: give them"),
            (lambda: route(x, "flux_attention"), "needs trained weights"),
            (lambda: route(x, "flux_attention", 2, False, "/nowhere.gguf"), "/nowhere.gguf"),
        ):
            with self.assertRaises(ValueError) as caught:
                bad()
            self.assertIn(text, str(caught.exception))


unittest.main(verbosity=1)
