"""Where results go: to another node by C-STORE, or to a DICOMweb server by STOW-RS."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

from pydicom import dcmread
from pynetdicom import AE, build_context

from covidseg_runtime.errors import CovidsegError
from covidseg_runtime.pacs.receiver import client_context
from covidseg_runtime.pacs.settings import Tls

_TIMEOUT_S = 60.0
_FAILED_SOP_SEQUENCE = "00081198"


class SendError(CovidsegError):
    """The archive did not take a result; it may be asked again."""


class Destination(Protocol):
    """Where results go."""

    def send(self, files: Sequence[Path]) -> None:
        """Send DICOM files.

        Raises:
            SendError: If one was not accepted. Those accepted may be sent again: their UIDs stay.
        """
        ...


@dataclass(frozen=True)
class StoreDestination:
    """A storage SCP.

    Attributes:
        host: Its address.
        port: Its port.
        ae_title: Its title.
        own_title: Title of the node.
        tls: Certificates; None: no TLS.
    """

    host: str
    port: int
    ae_title: str
    own_title: str = "COVIDSEG"
    tls: Tls | None = None

    def send(self, files: Sequence[Path]) -> None:
        """Send by C-STORE, in one association."""
        datasets = [dcmread(path) for path in files]
        if not datasets:
            return
        ae = AE(ae_title=self.own_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = _TIMEOUT_S
        kinds = dict.fromkeys((one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in datasets)
        contexts = [build_context(kind, syntax) for kind, syntax in kinds]
        tls = None if self.tls is None else (client_context(self.tls), self.host)
        association = ae.associate(self.host, self.port, contexts, ae_title=self.ae_title, tls_args=tls)
        if not association.is_established:
            raise SendError(f"{self.ae_title} at {self.host}:{self.port} does not take a connection.")
        try:
            for one in datasets:
                try:
                    status = association.send_c_store(one).get("Status")
                except (RuntimeError, ValueError) as error:
                    raise SendError(f"{self.ae_title} does not take {one.SOPClassUID.name}: {error}.") from error
                if status is None or not (status == 0 or 0xB000 <= status <= 0xBFFF):
                    answer = "no answer" if status is None else f"status 0x{status:04X}"
                    raise SendError(f"{self.ae_title} did not store {one.SOPClassUID.name}: {answer}.")
        finally:
            association.release()


@dataclass(frozen=True)
class StowDestination:
    """A DICOMweb server.

    Attributes:
        url: Its root, such as https://pacs/dicom-web.
        headers: Sent with every request, such as Authorization.
    """

    url: str
    headers: Mapping[str, str]

    def send(self, files: Sequence[Path]) -> None:
        """Send by STOW-RS, in one request."""
        if not files:
            return
        boundary = uuid.uuid4().hex
        parts = [
            b"--%b\r\nContent-Type: application/dicom\r\n\r\n%b\r\n" % (boundary.encode(), path.read_bytes())
            for path in files
        ]
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked where the URL is read
            f"{self.url.rstrip('/')}/studies",
            data=b"".join(parts) + b"--%b--\r\n" % boundary.encode(),
            headers={
                **self.headers,
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                "Accept": "application/dicom+json",
            },
        )
        try:
            with urllib.request.build_opener(_NoRedirection).open(request, timeout=_TIMEOUT_S) as response:
                refused = _count_refused(response.read())
        except (OSError, ValueError, HTTPException) as error:
            code = f" ({error.code})" if isinstance(error, urllib.error.HTTPError) else ""
            told = " ".join(str(error).split())  # the other side's words: on one line
            raise SendError(f"{self.url} did not take the results{code}: {told}.") from error
        if refused:
            raise SendError(f"{self.url} did not store {refused} of {len(files)} objects.")


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Leave a redirection as the error it is: followed, it would be a GET without the results, with the secret."""

    def redirect_request(self, *_: Any) -> None:  # noqa: ANN401 - of the standard library
        """Follow nowhere."""


def _count_refused(answer: bytes) -> int:
    """How many objects a store response (PS3.18 10.5.3) refuses; it is an object or, of some servers, an array.

    Raises:
        ValueError: If it is none.
    """
    parsed = json.loads(answer or b"{}")
    try:
        told = parsed if isinstance(parsed, list) else [parsed]
        return sum(len(one.get(_FAILED_SOP_SEQUENCE, {}).get("Value") or ()) for one in told)
    except (AttributeError, TypeError) as error:
        raise ValueError("the answer is no store response") from error
