"""Round numbers on an axis, and short words for them."""

import math


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """1, 2, 5 times powers of ten within [low, high]; only powers where there would be too many.

    Linear ones where there would be fewer than two.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    inside: list[float] = []
    for parts in ((1, 2, 5), (1, 3), (1,)):
        ticks = [p * 10.0**e for e in range(first, last + 1) for p in parts]
        inside = [t for t in ticks if low <= t * (1 + 1e-9) and t <= high * (1 + 1e-9)]
        if len(inside) <= most:
            return inside if len(inside) > 1 else linear_ticks(low, high, most)
    return inside[:: math.ceil(len(inside) / most)]


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    """``25k``, ``1.5M``, ``0.02``: three digits at most, and a unit."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}".replace("-", "−")
