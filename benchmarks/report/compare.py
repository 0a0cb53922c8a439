"""Whether a measurement is faster or slower than an earlier one, beyond the noise of both.

On the same machine with the same versions, times are compared; otherwise their ratios to the floor
(for imports: to that of torch). A difference is clear if the ranges between the quantiles 20 and 80
do not meet, and the medians are more than a tenth apart. A machine is rarely as quiet as it was
before: the floor's ratio, which no change of lorentzkit can move, stands beside.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from suites import OURS

FLOORS = ("floor", "torch")
CLEARLY = 1.1
Times = dict[str, dict[str, list[float]]]


class Verdict(NamedTuple):
    ratio: float
    """median / earlier median"""
    disjoint: bool
    """whether the two ranges do not meet"""
    floor_ratio: float | None
    """the same ratio of the floor, where times are compared"""

    @property
    def slower(self) -> bool:
        return self.disjoint and self.ratio > CLEARLY

    @property
    def faster(self) -> bool:
        return self.disjoint and self.ratio < 1 / CLEARLY

    def __str__(self) -> str:
        word = "slower" if self.slower else "faster" if self.faster else "no clear change"
        floor_note = "" if self.floor_ratio is None else f" (the floor's {self.floor_ratio:.2f}x)"
        return f"{word}, {self.ratio:.2f}x the earlier time{floor_note}"


def differences(current: dict[str, Any], earlier: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {earlier.get(key)} then, {current.get(key)} now"
        for key in sorted({*current, *earlier})
        if current.get(key) != earlier.get(key)
    )


def verdicts(fresh: Times, earlier: Times, *, ratios: bool) -> Iterator[tuple[str, Verdict]]:
    floor = next(name for name in FLOORS if name in fresh)
    floor_ratio = fresh[floor]["both"][1] / earlier[floor]["both"][1]
    for name in OURS:
        if name in fresh and name in earlier:
            now, then = (
                _relative(times, name, floor) if ratios else times[name]["both"]
                for times in (fresh, earlier)
            )
            disjoint = now[0] > then[2] or now[2] < then[0]
            yield name, Verdict(now[1] / then[1], disjoint, None if ratios else floor_ratio)


def _relative(times: Times, name: str, floor: str) -> list[float]:
    """The ratio of the medians, between the least and the largest ratio that the ranges allow."""
    (low, middle, high), (below, base, above) = times[name]["both"], times[floor]["both"]
    return [low / above, middle / base, high / below]
