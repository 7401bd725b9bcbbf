"""The node's ear: C-ECHO, and C-STORE of CT images into the queue. Nothing is decoded, everything is stored as it came.

Other kinds of objects are not negotiated, so that the node's own results cannot come back to it as work; a CT that
says it is by covidseg is refused as well.
"""

from __future__ import annotations

import io
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom import dcmread
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at run time

from covidseg_runtime.dicom.identity import MANUFACTURER
from covidseg_runtime.dicom.instances import dicom_seam
from covidseg_runtime.errors import OutputError, VolumeError
from covidseg_runtime.pacs.series_queue import SeriesQueue
from covidseg_runtime.pacs.settings import PacsSettings, Tls

SUCCESS, OUT_OF_RESOURCES, DOES_NOT_MATCH, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
_TAGS = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Manufacturer"]
# Who does not say soon what it wants, or does not leave after a refusal, is in the way of others.
_IDLE_S, _NEGOTIATION_S, _LARGEST_PDU = 30.0, 3.0, 1 << 18


@contextmanager
def listen(settings: PacsSettings, queue: SeriesQueue) -> Iterator[int]:
    """Receive while the block runs; it gets the port.

    Raises:
        OutputError: If the address and port cannot be listened on.
    """
    ae = AE(ae_title=settings.ae_title)
    ae.maximum_associations, ae.maximum_pdu_size = settings.limits.associations, _LARGEST_PDU
    ae.network_timeout = ae.dimse_timeout = _IDLE_S
    ae.acse_timeout = _NEGOTIATION_S
    ae.require_called_aet = True
    ae.require_calling_aet = list(settings.allowed_titles)
    ae.add_supported_context(Verification)
    for kind in (CTImageStorage, EnhancedCTImageStorage):
        ae.add_supported_context(kind, ALL_TRANSFER_SYNTAXES)

    def store(event: evt.Event) -> int:
        return _store(queue, event.encoded_dataset())

    try:
        server = ae.start_server(
            (settings.host, settings.port),
            block=False,
            ssl_context=None if settings.tls is None else server_context(settings.tls),
            evt_handlers=[(evt.EVT_C_STORE, store)],
        )
    except OSError as error:
        raise OutputError(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror or error}."
        ) from error

    def is_allowed(_request: Any, address: Any) -> bool:  # noqa: ANN401 - of the standard library's server
        return settings.lets_in(str(address[0]))

    if server is None or server.socket is None:  # it is there where it does not block
        raise OutputError(f"{settings.host}:{settings.port} cannot be listened on.")
    server.verify_request = is_allowed  # type: ignore[assignment]  # asked before a byte is read
    try:
        yield int(server.socket.getsockname()[1])
    finally:
        ae.shutdown()


def _store(queue: SeriesQueue, content: bytes) -> int:
    """Take one object in; its status in the words of DICOM PS3.4 B.2.3."""
    try:
        with dicom_seam("The object"):
            header = dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=list(_TAGS))
            study_uid, series_uid, instance_uid = (str(header[name].value) for name in _TAGS[:3])
            if str(header.get("Manufacturer", "")) == MANUFACTURER:
                return DOES_NOT_MATCH
    except VolumeError:
        return CANNOT_UNDERSTAND
    try:
        queue.store(study_uid, series_uid, instance_uid, content)
    except OutputError:
        return OUT_OF_RESOURCES
    return SUCCESS


def server_context(tls: Tls) -> ssl.SSLContext:
    """TLS of a node that is called.

    Raises:
        OutputError: If a certificate cannot be read.
    """
    return _context(ssl.Purpose.CLIENT_AUTH, tls)


def client_context(tls: Tls) -> ssl.SSLContext:
    """TLS of a node that calls."""
    return _context(ssl.Purpose.SERVER_AUTH, tls)


def _context(purpose: ssl.Purpose, tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(purpose, cafile=tls.authority)
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise OutputError(f"{tls.certificate} and {tls.key} are no certificate and its key: {error}.") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if purpose is ssl.Purpose.CLIENT_AUTH and tls.authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
