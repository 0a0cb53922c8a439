"""Whether a measurement is faster or slower than an earlier one, beyond the noise of both.

On the same machine with the same versions, times are compared; else their ratios to the floor (for
imports: to that of torch). "Clearly" is: the ranges between the quantiles 20 and 80 do not meet,
and the medians are more than a tenth apart. A machine is rarely as quiet as it was: the change of
the floor, which no change of lorentzkit moves, stands beside.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from suites import OURS

FLOORS = ("floor", "torch")
CLEARLY = 1.1
Times = dict[str, dict[str, list[float]]]


class Verdict(NamedTuple):
    change: float
    """median / earlier median"""
    apart: bool
    """whether the two ranges do not meet"""
    floor: float | None
    """the same change of the floor, where times are compared"""

    @property
    def slower(self) -> bool:
        return self.apart and self.change > CLEARLY

    @property
    def faster(self) -> bool:
        return self.apart and self.change < 1 / CLEARLY

    def __str__(self) -> str:
        word = "slower" if self.slower else "faster" if self.faster else "no clear change"
        beside = "" if self.floor is None else f" (the floor's {self.floor:.2f}x)"
        return f"{word}, {self.change:.2f}x the earlier time{beside}"


def differences(here: dict[str, Any], there: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {there.get(key)} then, {here.get(key)} now"
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key)
    )


def verdicts(fresh: Times, earlier: Times, *, ratios: bool) -> Iterator[tuple[str, Verdict]]:
    floor = next(name for name in FLOORS if name in fresh)
    moved = fresh[floor]["both"][1] / earlier[floor]["both"][1]
    for name in OURS:
        if name in fresh and name in earlier:
            now, then = (
                _relative(times, name, floor) if ratios else times[name]["both"]
                for times in (fresh, earlier)
            )
            apart = now[0] > then[2] or now[2] < then[0]
            yield name, Verdict(now[1] / then[1], apart, None if ratios else moved)


def _relative(times: Times, name: str, floor: str) -> list[float]:
    """The ratio, and the least and most that the two ranges allow."""
    (low, middle, high), (below, base, above) = times[name]["both"], times[floor]["both"]
    return [low / above, middle / base, high / below]
