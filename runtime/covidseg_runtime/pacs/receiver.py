"""The node's ear: C-ECHO, and C-STORE of CT images into the queue. Nothing is decoded, everything is stored as it came.

Other kinds of objects are not negotiated, so that the node's own results cannot come back to it as work; a CT that
says it is by covidseg is refused as well.
"""

from __future__ import annotations

import io
import re
import ssl
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at run time

from covidseg_runtime.dicom.identity import MANUFACTURER
from covidseg_runtime.dicom.instances import dicom_seam
from covidseg_runtime.errors import OutputError, VolumeError
from covidseg_runtime.pacs.series_queue import SeriesQueue
from covidseg_runtime.pacs.settings import PacsSettings, Tls

SUCCESS, OUT_OF_RESOURCES, DOES_NOT_MATCH, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_TAGS = [Tag(name) for name in (*_UIDS, "SOPClassUID", "Manufacturer")]
# What real scanners write: leading zeros are against the standard, and met. Without one, series would be mixed up.
_UID = re.compile(r"[0-9.]{1,64}")
_LARGEST_HEADER = 1 << 22  # up to the series' UID, of a deflated object
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
        request: Any = event.request  # typed as any message; a C-STORE has its data set
        return _store(queue, event.encoded_dataset(), request.DataSet, UID(str(event.context.transfer_syntax)))

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


def _store(queue: SeriesQueue, content: bytes, data: io.BytesIO, syntax: UID) -> int:
    """Take one object in, given as a file and as its data set; its status in the words of DICOM PS3.4 B.2.3."""
    try:
        with dicom_seam("The object"):
            header = _read_header(data, syntax)
            study_uid, series_uid, instance_uid = uids = [str(header[name].value) for name in _UIDS]
            is_own = str(header.get("Manufacturer", "")) == MANUFACTURER
    except VolumeError:
        return CANNOT_UNDERSTAND
    if not all(_UID.fullmatch(uid) for uid in uids):
        return CANNOT_UNDERSTAND
    if is_own:
        return DOES_NOT_MATCH
    try:
        queue.store(study_uid, series_uid, instance_uid, content)
    except OutputError:
        return OUT_OF_RESOURCES
    return SUCCESS


def _read_header(data: io.BytesIO, syntax: UID) -> Dataset:
    """What names the object; of a deflated one no more is unfolded than holds that: it may unfold a thousandfold."""
    data.seek(0)
    if syntax.is_deflated:
        unfolding = zlib.decompressobj(-zlib.MAX_WBITS)
        data = io.BytesIO(unfolding.decompress(data.read(), _LARGEST_HEADER))
    last = max(_TAGS)
    return read_dataset(
        data,
        syntax.is_implicit_VR,
        syntax.is_little_endian,
        stop_when=lambda tag, vr, length: tag > last,
        specific_tags=list(_TAGS),
    )


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
