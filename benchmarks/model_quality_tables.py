"""The tables of `model_quality.py`, written from its JSON."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_DASH = "–"


def to_markdown(record: Mapping[str, Any]) -> str:
    """One table a section, in the order of the record, as Markdown.

    Args:
        record: What `model_quality.py` kept, or printed of a trial.
    """
    model = record["model"]
    engine, precision = model["engine"]
    parts = [f"Model {model['name']} {model['version']}, {engine} in {precision}, quality {model['quality']}."]
    for name, section in record["sections"].items():
        parts += ["", *_TABLES[name](section)]
    return "\n".join(parts)


def _covid(section: Row) -> Iterator[str]:
    yield "### Held-out COVID-19 cases"
    yield ""
    yield from _table(
        ("case", "DSC", "NSD 3 mm", "predicted mL", "reference mL", "volume error", "remark"),
        [
            (
                row["case"],
                _number(row["dsc"], 3),
                _number(row["nsd_3mm"], 3),
                _number(row["predicted_ml"], 1),
                _number(row["reference_ml"], 1),
                _percent(row["volume_error"]),
                f"{row['not_averaged']}: not averaged" if row["not_averaged"] else "",
            )
            for row in section["cases"]
        ],
    )
    yield ""
    yield from _table(
        ("mean of", "cases", "DSC", "NSD 3 mm", "median volume error"),
        [
            (
                group,
                str(summary["n"]),
                _number(summary.get("mean_dsc"), 3),
                _number(summary.get("mean_nsd_3mm"), 3),
                _percent(summary.get("median_absolute_volume_error"), sign=""),
            )
            for group, summary in section["summary"].items()
        ],
    )


def _without_covid(section: Row) -> Iterator[str]:
    yield "### Scans without COVID-19"
    yield ""
    yield from _table(
        ("case", "shows", "in training", "lungs mL", "infection mL", "false mL", "false % of lungs"),
        [
            (
                row["case"],
                row["kind"],
                row["in_training"],
                _number(row["lung_ml"], 0),
                _number(row["infection_ml"], 1),
                _number(row["false_ml"], 1),
                _number(row["false_percent"], 2),
            )
            for row in section["cases"]
        ],
    )
    yield ""
    for name, words in (("all", "Healthy, nodules and tumour"), ("not_learned_from", "Of them not learned from")):
        summary = section["summary"][name]
        mean, highest = (_number(summary[key], 2) for key in ("mean_percent", "highest_percent"))
        yield f"{words}, {summary['n']} scans: mean {mean} %, highest {highest} %."


def _ground_glass(section: Row) -> Iterator[str]:
    yield "### A ground-glass nodule"
    yield ""
    yield from _table(
        ("case", "in training", "detected", "share found", "DSC"),
        [
            (
                row["case"],
                row["in_training"],
                "yes" if row["detected"] else "no",
                _number(row["share_found"], 2),
                _number(row["dsc"], 3),
            )
            for row in section["cases"]
        ],
    )


def _lungs(section: Row) -> Iterator[str]:
    yield "### Lungs with tumour"
    yield ""
    yield from _table(
        (
            *("case", "in training", "Dice", "without slices that lack a lung", "predicted mL", "reference mL"),
            *("tumour found", "left and right swapped"),
        ),
        [
            (
                row["case"],
                row["in_training"],
                _number(row["dice"], 3),
                f"{_number(row['dice_without_gaps'], 3)} ({len(row['gaps_in_reference'])} left out)",
                _number(row["predicted_ml"], 0),
                _number(row["reference_ml"], 0),
                _number(row["tumour_found"], 2),
                {True: "yes", False: "no", None: "a lung is missing"}[row["sides_swapped"]],
            )
            for row in section["cases"]
        ],
    )


def _modified(section: Row) -> Iterator[str]:
    yield "### Modified scans"
    yield ""
    yield from _table(
        ("case", "modification", "DSC before", "DSC", "loss", "said"),
        [
            (
                row["case"],
                row["modification"],
                _number(row["unmodified_dsc"], 3),
                _number(row["dsc"], 3),
                _number(row["dsc_loss"], 3),
                _said(row),
            )
            for row in section["cases"]
        ],
    )


def _out_of_distribution(section: Row) -> Iterator[str]:
    yield "### What is no chest"
    yield ""
    yield from _table(
        ("scan", "outcome", "lungs mL", "infection mL", "said"),
        [
            (
                row["case"],
                row["outcome"],
                _number(row.get("lung_ml"), 1),
                _number(row.get("infection_ml"), 1),
                _said(row),
            )
            for row in section["cases"]
        ],
    )


_TABLES = {
    "covid": _covid,
    "without_covid": _without_covid,
    "ground_glass": _ground_glass,
    "lungs": _lungs,
    "modified": _modified,
    "out_of_distribution": _out_of_distribution,
}


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def _number(value: float | None, digits: int) -> str:
    return _DASH if value is None else f"{value:.{digits}f}"


def _percent(share: float | None, sign: str = "+") -> str:
    return _DASH if share is None else f"{100 * share:{sign}.0f} %"


def _said(row: Row) -> str:
    return row["refused"] or " ".join(row["warnings"]) or _DASH
