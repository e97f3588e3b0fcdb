"""What the diagnostics of one image mean, in words for a person who wants to use the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codiffuse.inference.diagnostics import FLAGS

HIGH, DOUBTFUL = 0.8, 0.5  # least trust for these levels
SERIOUS = frozenset(
    {"residual_too_large", "restarts_disagree", "residual_not_white", "still_blurred", "texture_poor"}
)  # never with high


@dataclass(frozen=True)
class Verdict:
    """How far to trust a restoration.

    Attributes:
        level: `high`, `doubtful`, `low`, or empty when nobody judged.
        advice: one sentence on what to do with the picture; empty like `level`.
        reasons: one sentence a flag.
    """

    level: str
    advice: str
    reasons: tuple[str, ...]


def verdict(trust: float | None, flags: Sequence[str] = ()) -> Verdict:
    """Puts trust and flags into words.

    Args:
        trust: estimated chance in [0, 1] that the restoration is better than the measurement.
        flags: keys of `FLAGS`; an unknown one speaks for itself.
    """
    reasons = tuple(FLAGS.get(flag, flag.replace("_", " ")) for flag in flags)
    if trust is None:
        return Verdict("", "", reasons)
    chance = f"estimated chance {percent(trust)}"
    if trust >= HIGH and not SERIOUS & {*flags}:
        return Verdict("high", f"The restoration is very likely better than the measurement ({chance}).", reasons)
    if trust >= DOUBTFUL:
        advice = f"The restoration may be better than the measurement ({chance}); compare them before you use it."
        return Verdict("doubtful", advice, reasons)
    advice = f"The restoration is probably no better than the measurement ({chance}); keep the original."
    return Verdict("low", advice, reasons)


def percent(trust: float) -> str:
    """Whole percents; never 0 or 100, because no estimate is certain."""
    return f"{min(max(round(100 * trust), 1), 99)} %"
