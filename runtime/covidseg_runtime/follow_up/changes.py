"""What changed between two scans: each number in both, and every lesion's fate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["new", "resolved", "persistent"]
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Change:
    """One quantity in both scans.

    Attributes:
        prior: Of the prior; None where it is unknown.
        current: Of the current scan; None where it is unknown.
    """

    prior: float | None
    current: float | None

    @property
    def delta(self) -> float | None:
        """Current less prior."""
        return None if self.prior is None or self.current is None else round(self.current - self.prior, 3)

    @property
    def delta_percent(self) -> float | None:
        """Delta in percent of the prior; None where that is 0."""
        return None if self.delta is None or not self.prior else round(100.0 * self.delta / self.prior, 1)

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {**self.describe_points(), "delta_percent": self.delta_percent}

    def describe_points(self) -> dict[str, Any]:
        """As JSON, of a quantity that is a percentage itself: the delta is in points."""
        return {"prior": self.prior, "current": self.current, "delta": self.delta}


@dataclass(frozen=True)
class Totals:
    """What both label maps hold, each measured on its own grid; see `Measures`."""

    infection_ml: Change
    infection_percent: Change
    ground_glass_ml: Change
    consolidation_ml: Change
    lung_ml: Change

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "infection_ml": self.infection_ml.describe(),
            "infection_percent": self.infection_percent.describe_points(),
            "ground_glass_ml": self.ground_glass_ml.describe(),
            "consolidation_ml": self.consolidation_ml.describe(),
            "lung_ml": self.lung_ml.describe(),
        }


@dataclass(frozen=True)
class LesionChange:
    """A lesion, or several that are one in the other scan.

    Attributes:
        change: New, resolved or persistent.
        prior_ml: Volume in the prior, 0 if new.
        current_ml: Volume in the current scan, 0 if resolved.
        prior_lesions: Pieces in the prior.
        current_lesions: Pieces in the current scan.
        center_mm: RAS+ (x, y, z) in the current scan; of a resolved one the place that corresponds.
        prior_center_mm: RAS+ (x, y, z) in the prior; None if new.
    """

    change: Kind
    prior_ml: float
    current_ml: float
    prior_lesions: int
    current_lesions: int
    center_mm: Point
    prior_center_mm: Point | None

    @property
    def delta_ml(self) -> float:
        """Current less prior."""
        return round(self.current_ml - self.prior_ml, 3)

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "change": self.change,
            "prior_ml": self.prior_ml,
            "current_ml": self.current_ml,
            "delta_ml": self.delta_ml,
            "prior_lesions": self.prior_lesions,
            "current_lesions": self.current_lesions,
            "center_mm": self.center_mm,
            "prior_center_mm": self.prior_center_mm,
        }


@dataclass(frozen=True)
class Uncalled:
    """Lesions without a counterpart that are called neither new nor resolved.

    Attributes:
        prior_count: In the prior.
        prior_ml: Their volume.
        current_count: In the current scan.
        current_ml: Their volume.
    """

    prior_count: int
    prior_ml: float
    current_count: int
    current_ml: float

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "prior_count": self.prior_count,
            "prior_ml": self.prior_ml,
            "current_count": self.current_count,
            "current_ml": self.current_ml,
        }


@dataclass(frozen=True)
class LesionChanges:
    """Every lesion of both scans.

    Attributes:
        listed: New, resolved and persistent ones, largest first.
        outside_view: Without counterpart, outside of the other scan's field of view.
        small: Without counterpart, smaller than what is called new or resolved.
        reaching_outside: Persistent ones of which a part lies outside of the other scan's field of view.
    """

    listed: tuple[LesionChange, ...]
    outside_view: Uncalled
    small: Uncalled
    reaching_outside: int

    def of(self, change: Kind) -> tuple[LesionChange, ...]:
        """Those of one kind."""
        return tuple(lesion for lesion in self.listed if lesion.change == change)

    def describe(self) -> dict[str, Any]:
        """Counts and volumes as JSON."""
        new, resolved, persistent = (self.of(kind) for kind in ("new", "resolved", "persistent"))
        prior_ml, current_ml = _prior_ml(persistent), _current_ml(persistent)
        return {
            "new": {"count": len(new), "current_ml": _current_ml(new)},
            "resolved": {"count": len(resolved), "prior_ml": _prior_ml(resolved)},
            "persistent": {
                "count": len(persistent),
                "prior_ml": prior_ml,
                "current_ml": current_ml,
                "delta_ml": round(current_ml - prior_ml, 3),
                "merged": sum(lesion.prior_lesions > 1 for lesion in persistent),
                "split": sum(lesion.current_lesions > 1 for lesion in persistent),
                "reaching_outside": self.reaching_outside,
            },
            "outside_view": self.outside_view.describe(),
            "small": self.small.describe(),
        }


def _prior_ml(lesions: tuple[LesionChange, ...]) -> float:
    return round(sum(lesion.prior_ml for lesion in lesions), 3)


def _current_ml(lesions: tuple[LesionChange, ...]) -> float:
    return round(sum(lesion.current_ml for lesion in lesions), 3)
