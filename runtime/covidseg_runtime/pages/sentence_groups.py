"""Sentences that differ in numbers only, brought together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# What may differ: a number, or what stands in brackets.
_VARYING = re.compile(r"(\([^)]*\)|\d+(?:[.,]\d+)*)")
_ANYTHING = "…"


@dataclass(frozen=True)
class SentenceGroup:
    """One kind of sentence.

    Attributes:
        sentence: With "…" where the sentences of the group differ.
        scans: Names of the scans it was said of, in the order given.
    """

    sentence: str
    scans: tuple[str, ...]


def group_sentences(said: Iterable[tuple[str, str]]) -> tuple[SentenceGroup, ...]:
    """Group (scan, sentence) by what the sentences say; the largest group first.

    The scan's own file name within its sentence counts as varying.
    """
    kinds: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}
    for scan, sentence in said:
        parts = _VARYING.split(_without_name(sentence, scan))
        kinds.setdefault(tuple(parts[::2]), []).append((scan, parts))
    groups = [
        SentenceGroup(_merge([parts for _, parts in kind]), tuple(scan for scan, _ in kind)) for kind in kinds.values()
    ]
    return tuple(sorted(groups, key=lambda group: (-len(group.scans), group.sentence)))


def _without_name(sentence: str, scan: str) -> str:
    for name in (scan, scan.rpartition("/")[2]):
        sentence = re.sub(rf"(?<![\w/]){re.escape(name)}(?!\w)", _ANYTHING, sentence)
    return sentence


def _merge(kind: list[list[str]]) -> str:
    return "".join(part if len({part, *others}) == 1 else _ANYTHING for part, *others in zip(*kind, strict=True))
