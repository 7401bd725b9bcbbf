"""Learning rate over the course of a training."""


def poly_learning_rate(step: int, steps: int, base: float, warmup_steps: int = 0) -> float:
    """Linear warm-up, then nnU-Net's polynomial decay ``base * (1 - t) ** 0.9``.

    Args:
        step: Steps already done, from 0.
        steps: Steps of the whole training.
        base: Learning rate at the end of the warm-up.
        warmup_steps: Steps over which the rate grows linearly from ``base / warmup_steps``.
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    t = (step - warmup_steps) / max(1, steps - warmup_steps)
    return float(base * (1.0 - min(t, 1.0)) ** 0.9)
