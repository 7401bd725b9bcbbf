"""`covidseg evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidseg.cli.config_file import refuse_unknown_options

if TYPE_CHECKING:
    from covidseg_runtime import LabelAgreement
    from covidseg_runtime.evaluation import TruthKind

TRUTH_KINDS = ("auto", "labels", "infection")
TRUTH_KIND_HELP = (
    "What the truth holds: covidseg's labels, or infection only (every non-zero voxel). "
    "auto: infection if it holds nothing above 1."
)

_LABEL_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("prediction", metavar="PRED", type=_LABEL_FILE)
@click.argument("truth", metavar="TRUTH", type=_LABEL_FILE)
@click.option(
    "--truth-kind",
    type=click.Choice(TRUTH_KINDS),
    default="auto",
    show_default=True,
    help=TRUTH_KIND_HELP,
)
@click.option("--json", is_flag=True, help="Print JSON.")
@click.pass_context
def evaluate(ctx: click.Context, prediction: Path, truth: Path, truth_kind: TruthKind, *, json: bool) -> None:
    """Compare the label map PRED with TRUTH, label by label.

    DSC is the Dice coefficient, NSD the share of both borders that lie within the tolerance of
    each other (3 mm for infection, 1 mm for lungs), HD95 the 95th percentile of the Hausdorff
    distance. Both files must be of one scan; the order of their axes may differ.
    """
    refuse_unknown_options(ctx)
    from covidseg_runtime import compare_label_maps, read_label_map
    from covidseg_runtime.evaluation import resolve_truth_kind

    true_map = read_label_map(truth)
    agreements = compare_label_maps(read_label_map(prediction), true_map, truth_kind=truth_kind)
    if json:
        click.echo(dumps(agreements_json(agreements), indent=2))
        return
    if resolve_truth_kind(true_map, truth_kind) == "infection":
        click.echo("The truth is an infection mask: only infection is compared.", err=True)
    click.echo("label       DSC     NSD     tolerance  HD95       predicted    true")
    for agreement in agreements:
        click.echo(_line(agreement))


def agreements_json(agreements: Sequence[LabelAgreement]) -> list[dict[str, Any]]:
    """The measures with null for those that have no value."""
    from covidseg_runtime.report import plain_json

    return [plain_json(asdict(agreement)) for agreement in agreements]


def _line(agreement: LabelAgreement) -> str:
    return (
        f"{agreement.name:<11} {agreement.dice:<7.4f} {agreement.surface_dice:<7.4f} "
        f"{agreement.tolerance_mm:g} mm       {agreement.hausdorff95_mm:>6.2f} mm  "
        f"{agreement.predicted_ml:>9.2f} mL {agreement.true_ml:>9.2f} mL"
    )
