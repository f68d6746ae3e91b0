"""Planted facts in tokens that stand for nothing else: noise, in which names are followed by values, and at the end
questions. A model that is trained from scratch learns within minutes to look the values up."""
import torch

ASK, NAMES, VALUES, NOISE = 0, 64, 32, 128
VOCAB = 1 + NAMES + VALUES + NOISE
TOKENS_A_FACT = 16


def count(length):
    """Facts of a sequence, all of them asked about."""
    return min(NAMES, max(4, length // TOKENS_A_FACT))


def batch(rows, length, generator):
    """ids [rows, length], and the positions of the questions' names, whose next token is the value, [asked]. The facts
    stand at random places before the questions (ASK name value), which come in an order of their own."""
    device, n = generator.device, count(length)

    def chosen(of, some):  # [rows, some] different numbers below `of`
        return torch.rand(rows, of, device=device, generator=generator).argsort(1)[:, :some]

    uniform = lambda low, high, *shape: torch.randint(low, high, shape, device=device, generator=generator)  # noqa: E731
    body = length - 3 * n
    ids = uniform(1 + NAMES + VALUES, VOCAB, rows, length)
    names, values = 1 + chosen(NAMES, n), uniform(1 + NAMES, 1 + NAMES + VALUES, rows, n)
    at = 2 * chosen(body // 2, n)
    ids.scatter_(1, at, names)
    ids.scatter_(1, at + 1, values)
    order = chosen(n, n)
    tail = ids[:, body:].unflatten(1, (n, 3))
    tail[..., 0], tail[..., 1], tail[..., 2] = ASK, names.gather(1, order), values.gather(1, order)
    return ids, torch.arange(body + 1, length, 3, device=device)
