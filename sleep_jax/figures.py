"""Numbers as a person reads them: one form and one unit wherever they are told."""

import math


def percent(value: float | None) -> str:
    """0.923 as "92.3"; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def scaled(value: float | None, unit: str = "") -> str:
    """A count with three digits and a decimal prefix: 1234567 as "1.23 M"."""
    if value is None:
        return "–"
    power = 0 if abs(value) < 1000 else min(int(math.log10(abs(value)) / 3 + 1e-9), 6)
    digits = f"{value / 1000**power:.3g}" if power else f"{value:.4g}"
    if digits == "1e+03":
        digits, power = "1", power + 1
    return f"{digits} {('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z')[power]}{unit}".rstrip()


def duration(seconds: float | None) -> str:
    """Seconds as "8.1 s", "3.3 min" or "2.1 h"."""
    if seconds is None:
        return "–"
    size, unit = next((pair for pair in ((3600, "h"), (60, "min")) if seconds >= pair[0]), (1, "s"))
    return f"{seconds / size:.1f} {unit}"
