"""Does a node outlive hostile callers, and does its memory stay? 10,000 mutated or random streams at its port.

    python benchmarks/hostile_node.py [--callers 10000]

The callers are those of tests/hostile/pdus.py, by their seeds. The node is a process of its own, without a network to
run; after every thousand callers it has to answer C-ECHO. It needs the extra `pacs`.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import keep_result

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from hostile.pdus import attack  # noqa: E402
from pacs_peers import echo, wait_for  # noqa: E402

_NODE = """
import sys, threading
from pathlib import Path
from covidseg_runtime.pacs.node import PacsNode
from covidseg_runtime.pacs.settings import PacsSettings
class Nowhere:
    def send(self, files): raise SystemExit("there is nothing to send")
node = PacsNode(PacsSettings(queue=Path(sys.argv[1]), port=0), lambda *_: (), Nowhere(), lambda line: None)
node.run(threading.Event(), lambda port: print(port, flush=True))
"""
_BETWEEN = 1000


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


def main() -> None:
    """Attack, ask, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=10_000)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as queue:
        command = [sys.executable, "-c", _NODE, queue]
        node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            port = int(node.stdout.readline()) if node.stdout else 0
            wait_for(lambda: echo(port))
            began, memory, slowest = time.monotonic(), [round(resident_mib(node.pid), 1)], 0.0
            for seed in range(arguments.callers):
                attack(port, seed)
                if seed % _BETWEEN == _BETWEEN - 1:
                    asked = time.monotonic()
                    wait_for(lambda: echo(port), 60, every=0.5)
                    slowest = max(slowest, time.monotonic() - asked)
                    memory.append(round(resident_mib(node.pid), 1))
            stored = [path for path in Path(queue).rglob("*") if path.is_file()]
            keep_result(
                "hostile_node",
                {
                    "callers": arguments.callers,
                    "minutes": round((time.monotonic() - began) / 60, 1),
                    "alive": node.poll() is None,
                    "longest_wait_for_echo_s": round(slowest, 1),
                    "resident_mib": {"before": memory[0], "after_each_thousand": memory[1:]},
                    "files_stored": len(stored),
                },
            )
        finally:
            node.kill()
            node.wait()


if __name__ == "__main__":
    main()
