"""The seam to jinja2: a template and values become one HTML file that needs nothing but itself.

Every page extends ``templates/base.html``. What a browser may do with it is written into its head: nothing is loaded
from anywhere, and of all scripts and styles only those of this package run, known by their SHA-256. Text of a scan or a
file name cannot become one.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import covidseg_runtime
from covidseg_runtime.report import LIMITS, NOTICE

_HERE = Path(__file__).parent
_POLICY_PLACE = "COVIDSEG-CONTENT-SECURITY-POLICY"
# Words that would end a script element, or change how a browser looks for its end.
_ENDS_OF_SCRIPT = ("</script", "<!--")


def render(template_name: str, **context: object) -> bytes:
    """Fill a template.

    Text is escaped wherever it stands; a name that the template uses and the caller forgot is an error. The same values
    give the same bytes.

    Args:
        template_name: A file in ``templates``, which extends ``base.html``.
        context: What the template names. ``notice``, ``limits`` and ``version`` are given to every template, and
            ``script(name)`` and ``style(name)``, which put a file of this folder into the page.

    Returns:
        The HTML, UTF-8.

    Raises:
        jinja2.UndefinedError: If a name of the template is missing.
    """
    inlined = _Inlined()
    given = {"notice": NOTICE, "limits": LIMITS, "version": covidseg_runtime.__version__, "policy": _POLICY_PLACE}
    html = (
        _environment()
        .get_template(template_name)
        .render(**given, script=inlined.script, style=inlined.style, **context)
    )
    # The policy stands before all scripts and names them, so it is known last. A file name that is no Unicode loses
    # only the letters that are none.
    return html.replace(_POLICY_PLACE, inlined.policy, 1).encode(errors="replace")


def data_url(content: bytes, media_type: str) -> str:
    """``content`` as a URL that holds it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@dataclass
class _Inlined:
    """The scripts and styles of one page, and the policy that allows them."""

    scripts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)

    def script(self, name: str) -> Markup:
        """A file as classic script.

        Raises:
            ValueError: If a browser would not read it to its end.
        """
        source = _read(name)
        if any(word in source.lower() for word in _ENDS_OF_SCRIPT):
            raise ValueError(f"{name} holds one of {_ENDS_OF_SCRIPT}, which no script within a page may hold")
        self.scripts.append(_source_hash(source))
        return Markup("<script>{}</script>").format(Markup(source))  # noqa: S704 - a file of this package

    def style(self, name: str) -> Markup:
        """A file as style sheet."""
        source = _read(name)
        self.styles.append(_source_hash(source))
        return Markup("<style>{}</style>").format(Markup(source))  # noqa: S704 - a file of this package

    @property
    def policy(self) -> str:
        """The Content-Security-Policy."""
        return "; ".join(
            (
                "default-src 'none'",
                f"script-src {_sources(self.scripts)}",
                f"style-src {_sources(self.styles)}",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            )
        )


def _sources(hashes: list[str]) -> str:
    return " ".join(hashes) or "'none'"


def _read(name: str) -> str:
    # A browser reads every end of line as \n before it computes the hash; so does this.
    return (_HERE / name).read_text(encoding="utf-8")


def _source_hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
