"""The server: a socket, uvicorn around the application, and a clean end."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from covidseg_runtime.errors import OutputError, SettingsError
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.service.application import create_application
from covidseg_runtime.service.connection import guarded_protocol
from covidseg_runtime.service.service import Service
from covidseg_runtime.service.settings import Certificate, ServiceSettings

_BACKLOG = 128
_KEEP_ALIVE_S = 5
_LONGEST_END_S = 10  # for answers that are on their way


def run_service(
    settings: ServiceSettings,
    open_segmenter: Callable[[], Segmenter],
    stop: threading.Event,
    report: Callable[[str], None],
) -> None:
    """Answer until `stop` is set; what is not done then is done by the next start.

    Args:
        settings: What it is told.
        open_segmenter: Loads the model; it is closed in the end.
        stop: Ends it.
        report: Gets a line an event; none tells who a patient is.

    Raises:
        OutputError: If the address cannot be listened on, or the folder cannot be written.
        SettingsError: If the folder or the certificate is no such thing.
        BundleError, EngineError: If the model cannot be loaded.
    """
    context = None if settings.certificate is None else _tls_context(settings.certificate)
    with _bound_socket(settings) as bound, open_segmenter() as segmenter:
        service = Service(settings, segmenter, report)
        server = make_server(service, stop, context, lambda: report(f"listening on {_url(settings, bound)}"))
        with service.running():
            asyncio.run(server.serve([bound]))


def make_server(
    service: Service,
    stop: threading.Event,
    context: ssl.SSLContext | None = None,
    on_listening: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """A server that is yet to be run on a socket.

    Args:
        service: What answers.
        stop: Ends it.
        context: Of TLS; None: no TLS.
        on_listening: Called as soon as it can be reached.
    """
    # What a caller sends is no reason to write to the log.
    for name in ("python_multipart", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config = uvicorn.Config(
        create_application(service),
        http=guarded_protocol(service.settings.limits),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LONGEST_END_S,
    )
    config.load()
    config.ssl = context
    return _Server(config, stop, on_listening)


class _Server(uvicorn.Server):
    """Ends when the event is set; signals are their owner's."""

    def __init__(self, config: uvicorn.Config, stop: threading.Event, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop, self._on_listening = stop, on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        self.should_exit = self.should_exit or self._stop.is_set()
        return await super().on_tick(counter)


@contextmanager
def _bound_socket(settings: ServiceSettings) -> Iterator[socket.socket]:
    """A socket that is bound and does not yet listen.

    Raises:
        OutputError: If the address is no address, or taken.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OutputError(f"{where} cannot be listened on: {error.strerror or error}; give another --host.") from error
    with bound:
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError as error:
            raise OutputError(
                f"{where} cannot be listened on: {error.strerror or error}; give another --port."
            ) from error
        yield bound


def _tls_context(certificate: Certificate) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate.chain, certificate.key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"{certificate.chain} and {certificate.key} are no certificate and its key: {error}."
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _url(settings: ServiceSettings, bound: socket.socket) -> str:
    scheme = "http" if settings.certificate is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{bound.getsockname()[1]}"
