"""How far a network's logits are to be trusted: the temperature that bundle.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from covidseg_runtime.bundle_description import BUNDLE_FILE, in_short, json_number, json_object
from covidseg_runtime.errors import BundleError

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """Probabilities are softmax(logits / temperature) (Guo et al. 2017); which class is the highest never changes.

    Attributes:
        temperature: Without unit; above 1 it takes certainty away.
        cases: How many cases it was fitted on.
    """

    temperature: float
    cases: int


NOT_CALIBRATED = Calibration(temperature=1.0, cases=0)


def read_calibration(description: Mapping[str, Any]) -> Calibration:
    """The section ``calibration`` of bundle.json; `NOT_CALIBRATED` where it has none.

    Raises:
        BundleError: If the temperature is no number from 0.05 to 20, if no case is named, or if the tiles'
            probabilities are averaged, which leaves no logits to divide.
    """
    if "calibration" not in description:
        return NOT_CALIBRATED
    section = json_object(description, "calibration")
    temperature, cases = json_number(section, "temperature"), section.get("cases")
    if not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
        raise BundleError(
            f"{BUNDLE_FILE}: calibration.temperature is {temperature:g}; expected {LOWEST_TEMPERATURE:g} to "
            f"{HIGHEST_TEMPERATURE:g}"
        )
    if not isinstance(cases, list) or not cases or not all(isinstance(case, str) for case in cases):
        raise BundleError(f"{BUNDLE_FILE}: calibration.cases must be a list of case names, not {in_short(cases)}")
    if json_object(description, "tile_plan").get("average", "logits") != "logits":
        raise BundleError(f"{BUNDLE_FILE}: calibration needs tile_plan.average to be logits")
    return Calibration(temperature, len(cases))
