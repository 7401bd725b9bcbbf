"""The text of a page as a reader sees it, without tags, scripts and styles."""

from __future__ import annotations

import re
from html import unescape


def words_of(page: bytes | str) -> str:
    """All text in the order of the page, one space between words."""
    html = page.decode() if isinstance(page, bytes) else page
    html = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def section_of(page: bytes | str, heading: str) -> str:
    """The text of the section that the element with id ``heading`` names."""
    html = page.decode() if isinstance(page, bytes) else page
    _, _, rest = html.partition(f'<section aria-labelledby="{heading}"')
    return words_of(f"<section{rest.partition('</section>')[0]}")
