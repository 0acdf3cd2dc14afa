"""Intervals, written as a mathematician writes them: `"[0, 1)"`, `"(0, inf]"`, `"[0, 9] whole"` for whole numbers only."""

import re

# What an interval of whole numbers ends with.
WHOLE = " whole"


def is_interval(text: str) -> bool:
    """Whether this is one."""
    return bool(re.fullmatch(r"[\[(] *\S+ *, *\S+ *[\])]( whole)?", text))


def intersection(a: str, b: str) -> str:
    """The numbers that lie in both intervals."""
    ending = WHOLE if WHOLE in (a[-len(WHOLE) :], b[-len(WHOLE) :]) else ""
    a, b = a.removesuffix(WHOLE), b.removesuffix(WHOLE)
    (low_a, high_a), (low_b, high_b) = bounds(a), bounds(b)
    low = max((low_a, a[0] == "(", a), (low_b, b[0] == "(", b))[2]
    high = min((high_a, a[-1] == "]", a), (high_b, b[-1] == "]", b))[2]
    return f"{low.split(',')[0]}, {high.split(',')[1].strip()}{ending}"


def bounds(interval: str) -> tuple[float, float]:
    """Its two ends."""
    low, high = map(float, interval[1:-1].split(","))
    return low, high


def contains(interval: str, x: float) -> bool:
    """Whether x lies in an interval such as `"[0, 1)"`; NaN lies in none.

    >>> contains("[0, 1)", 0.0), contains("[0, 1)", 1.0), contains("(-inf, inf)", float("nan"))
    (True, False, False)
    """
    if interval.endswith(WHOLE):
        return x.is_integer() and contains(interval.removesuffix(WHOLE), x)
    low, high = bounds(interval)
    above = x >= low if interval[0] == "[" else x > low
    below = x <= high if interval[-1] == "]" else x < high
    return above and below
