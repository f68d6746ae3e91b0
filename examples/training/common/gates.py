"""Gates that decide hard and learn soft."""

RELAXED = False  # forward values are the soft ones too: what a finite difference can check


def straight_through(hard, soft):
    return soft if RELAXED else hard + soft - soft.detach()
