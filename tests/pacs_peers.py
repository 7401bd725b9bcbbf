"""The other side of a node: a sender, and an archive that keeps what it is sent."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from dicom_files import series
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification

from covidseg_runtime.pacs.node import PacsNode
from covidseg_runtime.pacs.settings import PacsSettings


class Archive:
    """A storage SCP on a free port.

    Attributes:
        received: How often each SOPInstanceUID came.
        objects: The last object of each.
    """

    def __init__(self) -> None:
        self.received: Counter[str] = Counter()
        self.objects: dict[str, Dataset] = {}
        self.status = 0x0000
        self._lock = threading.Lock()

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[int]:
        ae = AE(ae_title="ARCHIVE")
        ae.supported_contexts = AllStoragePresentationContexts
        server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        try:
            yield server.socket.getsockname()[1]
        finally:
            ae.shutdown()

    def _store(self, event: evt.Event) -> int:
        if self.status == 0:
            with self._lock:
                dataset = event.dataset
                dataset.file_meta = event.file_meta
                self.received[dataset.SOPInstanceUID] += 1
                self.objects[dataset.SOPInstanceUID] = dataset
        return self.status


def numbered_series(number: int) -> list[Dataset]:
    """The phantom as the series of another study."""
    images = deepcopy(series())
    for k, one in enumerate(images):
        one.StudyInstanceUID, one.SeriesInstanceUID = f"1.2.9.{number}", f"1.2.9.{number}.1"
        one.SOPInstanceUID = f"1.2.9.{number}.1.{k + 1}"
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return images


def send(images: Sequence[Dataset], port: int, *, title: str = "COVIDSEG", calling: str = "SCANNER") -> list[int]:
    """Send by C-STORE; the status of each, empty if no association came about."""
    ae = AE(ae_title=calling)
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port, ae_title=title)
    if not association.is_established:
        return []
    found = [int(association.send_c_store(one).Status) for one in images]
    association.release()
    return found


def echo(port: int, *, title: str = "COVIDSEG", calling: str = "SCANNER", **tls: object) -> bool:
    """Whether C-ECHO is answered."""
    ae = AE(ae_title=calling)
    ae.acse_timeout = ae.connection_timeout = 5
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", port, ae_title=title, **tls)
    if not association.is_established:
        return False
    status = association.send_c_echo()
    association.release()
    return bool(status) and status.Status == 0


def free_port() -> int:
    """A port nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(is_so, seconds: float = 30.0, *, every: float = 0.05) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: If it does not become so.
    """
    import time

    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(every)


def files_of(folder: Path) -> list[str]:
    """Names of the files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class Running:
    """A node in a thread."""

    def __init__(self, node: PacsNode, port: int, lines: list[str]) -> None:
        self.node, self.port, self.lines = node, port, lines

    def wait_for(self, **counts: int) -> None:
        wait_for(lambda: {key: self.node.queue.counts()[key] for key in counts} == counts)


@contextmanager
def running(settings: PacsSettings, answer, destination) -> Iterator[Running]:
    lines: list[str] = []
    node, stop, ports = PacsNode(settings, answer, destination, lines.append), threading.Event(), []
    thread = threading.Thread(target=node.run, args=(stop, ports.append))
    thread.start()
    try:
        wait_for(lambda: ports)
        yield Running(node, ports[0], lines)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
