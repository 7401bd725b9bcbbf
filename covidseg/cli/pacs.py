"""`covidseg pacs`."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidseg.cli.config_file import refuse_unknown_options
from covidseg.cli.exit_codes import needs_extra
from covidseg.cli.interruption import cancel_on_signals
from covidseg.cli.segment_options import dicom_object_options

if TYPE_CHECKING:
    from covidseg_runtime.pacs.sender import Destination
    from covidseg_runtime.pacs.settings import PacsSettings

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PEER = re.compile(r"(?P<title>[^@]+)@(?P<host>.+):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class PacsOptions:
    """The options of `covidseg pacs` as click hands them over."""

    queue: Path
    status: bool
    ae_title: str
    host: str
    port: int
    send_to: str | None
    stow: str | None
    allow_ae: tuple[str, ...]
    allow_address: tuple[str, ...]
    settle: float
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    model: str | None
    device: str
    objects: tuple[str, ...]
    lungs: bool


@click.command()
@click.option(
    "--queue",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of what was received and is not yet answered. It holds patients' scans: guard it.",
)
@click.option("--status", is_flag=True, help="Say what is in the queue, and end.")
@click.option("--ae-title", default="COVIDSEG", show_default=True, help="Title of this node.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option("--port", default=11112, show_default=True, type=click.IntRange(0, 65535))
@click.option("--send-to", metavar="AE@HOST:PORT", help="Send results by C-STORE.")
@click.option(
    "--stow",
    metavar="URL",
    help="Send results by STOW-RS. COVIDSEG_STOW_TOKEN (bearer) or COVIDSEG_STOW_USER (name:password) opens the door.",
)
@click.option("--allow-ae", multiple=True, metavar="TITLE", help="Who may call; may be repeated. [default: anyone]")
@click.option(
    "--allow-address", multiple=True, metavar="NETWORK", help="From where, such as 10.1.0.0/16. [default: anywhere]"
)
@click.option("--settle", default=5.0, show_default=True, metavar="S", help="A series is whole after S quiet seconds.")
@click.option("--tls-cert", type=_FILE, help="Talk TLS: certificate of this node (PEM).")
@click.option("--tls-key", type=_FILE, help="Its key (PEM).")
@click.option("--tls-ca", type=_FILE, help="Callers have to show a certificate that this one signed.")
@click.option("--model", metavar="NAME|DIR", help="A shipped model, or the folder of a bundle.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:n.")
@dicom_object_options
@click.pass_context
def pacs(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - see PacsOptions
    """Receive CT series, segment them, and send SEG, report and picture back: a node beside a PACS.

    What was received survives the end of the process. Research use only; not a medical device.
    """
    refuse_unknown_options(ctx)
    wanted = PacsOptions(**options)
    with needs_extra("pacs", "A node beside a PACS"):
        from covidseg_runtime.pacs.node import PacsNode
        from covidseg_runtime.pacs.segment_answer import SegmentAnswer
    settings = _settings(wanted)
    if wanted.status:
        _print_status(settings)
        return
    destination = _destination(wanted, settings)
    from covidseg_runtime import Segmenter
    from covidseg_runtime.dicom.results import WantedObjects

    with cancel_on_signals() as stop, Segmenter.open(wanted.model, device=wanted.device) as segmenter:
        answer = SegmentAnswer(segmenter, WantedObjects(wanted.objects, wanted.lungs), stop)
        PacsNode(settings, answer, destination, lambda line: click.echo(line, err=True)).run(stop)
    click.echo("stopped; what is queued is answered by the next start", err=True)


def _settings(wanted: PacsOptions) -> PacsSettings:
    from covidseg_runtime.pacs.settings import PacsSettings, Tls, parse_networks

    if (wanted.tls_cert is None) != (wanted.tls_key is None) or (wanted.tls_ca and wanted.tls_cert is None):
        raise click.UsageError("--tls-cert and --tls-key go together, --tls-ca goes with both")
    tls = None
    if wanted.tls_cert is not None and wanted.tls_key is not None:
        tls = Tls(wanted.tls_cert, wanted.tls_key, wanted.tls_ca)
    return PacsSettings(
        queue=wanted.queue,
        ae_title=wanted.ae_title,
        host=wanted.host,
        port=wanted.port,
        allowed_titles=wanted.allow_ae,
        allowed_addresses=parse_networks(wanted.allow_address),
        settle_s=wanted.settle,
        tls=tls,
    )


def _destination(wanted: PacsOptions, settings: PacsSettings) -> Destination:
    from covidseg_runtime.pacs.sender import StoreDestination, StowDestination
    from covidseg_runtime.pacs.settings import judge_title

    if (wanted.send_to is None) == (wanted.stow is None):
        raise click.UsageError("give either --send-to AE@HOST:PORT or --stow URL")
    if wanted.send_to is not None:
        found = _PEER.fullmatch(wanted.send_to)
        if found is None or not 0 < int(found["port"]) < 65536:
            raise click.UsageError(f"{wanted.send_to} is no AE@HOST:PORT, such as ARCHIVE@10.0.0.5:104")
        judge_title(found["title"])
        return StoreDestination(found["host"], int(found["port"]), found["title"], settings.ae_title, settings.tls)
    url = str(wanted.stow)
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f"{url} is no http or https URL")
    return StowDestination(url, _authorization())


def _authorization() -> dict[str, str]:
    """From the environment: a command line can be read by others on the machine."""
    if token := os.environ.get("COVIDSEG_STOW_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    if user := os.environ.get("COVIDSEG_STOW_USER"):
        return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
    return {}


def _print_status(settings: PacsSettings) -> None:
    from covidseg_runtime.pacs.series_queue import SeriesQueue

    if not settings.queue.is_dir():
        raise click.UsageError(f"there is no queue at {settings.queue}")
    queue = SeriesQueue(settings.queue, settings.limits)
    for state, count in queue.counts().items():
        click.echo(f"{state:<10} {count}")
    for key, reason in queue.reasons().items():
        click.echo(f"{key}: {reason}")
