"""`covidseg serve`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidseg.cli.config_file import refuse_unknown_options
from covidseg.cli.exit_codes import needs_extra
from covidseg.cli.interruption import cancel_on_signals

if TYPE_CHECKING:
    from covidseg_runtime.service.settings import ServiceSettings

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_TOKEN_VARIABLE = "COVIDSEG_SERVE_TOKEN"  # noqa: S105 - its name


@dataclass(frozen=True)
class ServeOptions:
    """The options of `covidseg serve` as click hands them over."""

    host: str
    port: int
    folder: Path | None
    token_file: Path | None
    open_metrics: bool
    tls_cert: Path | None
    tls_key: Path | None
    queue: int
    workers: int
    max_upload_mib: int
    max_disk_gib: int
    keep_hours: float
    model: str | None
    engine: str
    device: str
    precision: str
    threads: int | None


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; any other needs a token.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where uploads and results lie. They are patients' scans: guard it. [default: ~/.local/state/covidseg/serve]",
)
@click.option("--token-file", type=_FILE, help=f"Callers show the token in this file; or {_TOKEN_VARIABLE}.")
@click.option("--open-metrics", is_flag=True, help="/metrics needs no token.")
@click.option("--tls-cert", type=_FILE, help="Talk TLS: certificate (PEM).")
@click.option("--tls-key", type=_FILE, help="Its key (PEM).")
@click.option("--queue", default=32, show_default=True, type=click.IntRange(min=1), help="Jobs that may wait.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 16), help="Scans at a time.")
@click.option("--max-upload-mib", default=1024, show_default=True, type=click.IntRange(min=1), help="Of one scan.")
@click.option("--max-disk-gib", default=20, show_default=True, type=click.IntRange(min=1), help="Of all of them.")
@click.option(
    "--keep-hours",
    default=24.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True, max=24 * 365),
    help="Results are removed after so long.",
)
@click.option("--model", metavar="NAME|DIR", help="A shipped model, or the folder of a bundle.")
@click.option(
    "--engine",
    type=click.Choice(("auto", "openvino", "onnxruntime", "tensorrt")),
    default="auto",
    show_default=True,
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:n.")
@click.option(
    "--precision", type=click.Choice(("auto", "f32", "bf16", "f16", "int8")), default="auto", show_default=True
)
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="CPU threads. [default: the engine's choice]")
@click.pass_context
def serve(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - see ServeOptions
    """Answer over HTTP: send scans as jobs and fetch results, or ask the network tile by tile (KServe v2).

    What was accepted survives the end of the process. Research use only; not a medical device.
    """
    refuse_unknown_options(ctx)
    wanted = ServeOptions(**options)
    with needs_extra("serve", "Answering over HTTP"):
        from covidseg_runtime.service.server import run_service
    from covidseg_runtime import Segmenter
    from covidseg_runtime.report import describe_choice

    settings = _settings(wanted)

    def open_segmenter() -> Segmenter:
        segmenter = Segmenter.open(
            wanted.model,
            engine=wanted.engine,
            device=wanted.device,
            precision=wanted.precision,
            threads=wanted.threads,
        )
        click.echo(describe_choice(segmenter), err=True)
        return segmenter

    _print_terms(settings)
    with cancel_on_signals() as stop:
        run_service(settings, open_segmenter, stop, lambda line: click.echo(line, err=True))
    click.echo("stopped; what waits is done by the next start", err=True)


def _settings(wanted: ServeOptions) -> ServiceSettings:
    from covidseg_runtime.service.settings import HEALTH_PATHS, Certificate, ServiceLimits, ServiceSettings

    if (wanted.tls_cert is None) != (wanted.tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    certificate = None
    if wanted.tls_cert is not None and wanted.tls_key is not None:
        certificate = Certificate(wanted.tls_cert, wanted.tls_key)
    return ServiceSettings(
        folder=wanted.folder or _default_folder(),
        host=wanted.host,
        port=wanted.port,
        token=_token(wanted.token_file),
        open_paths=HEALTH_PATHS | {"/metrics"} if wanted.open_metrics else HEALTH_PATHS,
        keep_s=wanted.keep_hours * 3600,
        workers=wanted.workers,
        limits=ServiceLimits(
            queue=wanted.queue, upload_bytes=wanted.max_upload_mib << 20, disk_bytes=wanted.max_disk_gib << 30
        ),
        certificate=certificate,
    )


def _token(file: Path | None) -> str | None:
    """From a file or the environment: a command line can be read by others on the machine."""
    if file is None:
        return os.environ.get(_TOKEN_VARIABLE)
    try:
        return file.read_text("utf-8").strip()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{file} holds no text; make a token with `openssl rand -hex 32`") from error


def _default_folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "covidseg" / "serve"


def _print_terms(settings: ServiceSettings) -> None:
    click.echo(
        f"Research use only; not a medical device. Results lie in {settings.folder} for {settings.keep_s / 3600:g} h.",
        err=True,
    )
    if settings.token is not None and settings.certificate is None and not settings.is_local:
        click.echo("Warning: token and scans travel unencrypted; give --tls-cert, or use a proxy that does.", err=True)
