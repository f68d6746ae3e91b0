"""Gates that decide hard and learn soft."""

import torch
import torch.nn.functional as F

RELAXED = False  # forward values are the soft ones too: what a finite difference can check


def straight_through(hard, soft):
    return soft if RELAXED else hard + soft - soft.detach()


def gumbel(logits, tau, generator):
    """Gumbel argmax of logits [.., choices] -> (hard but for its gradient, tempered softmax)."""
    u = torch.rand(logits.shape, device=logits.device, dtype=logits.dtype, generator=generator)
    y = ((logits - torch.log(-torch.log(u + 1e-8) + 1e-8)) / tau).softmax(-1)
    return straight_through(F.one_hot(y.argmax(-1), logits.shape[-1]).to(y.dtype), y), y
