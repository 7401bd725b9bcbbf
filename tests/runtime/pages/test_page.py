"""The seam to jinja2: what is text stays text, and a browser may load nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from covidseg_runtime.pages import page
from covidseg_runtime.pages.page import data_url, render

NIIVUE = Path(page.__file__).parent / "niivue" / "niivue-0.69.0.umd.js"


@pytest.fixture
def own_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of templates to write into, with the real base and style."""
    (tmp_path / "templates").mkdir()
    for name in ("base.html", "style.css"):
        (tmp_path / "templates" / name).write_bytes((NIIVUE.parents[1] / "templates" / name).read_bytes())
    monkeypatch.setattr(page, "_HERE", tmp_path)
    return tmp_path / "templates"


def _page_of(folder: Path, main: str) -> str:
    template = '{% extends "base.html" %}{% block main %}' + main + "{% endblock %}"
    (folder / "one.html").write_text(template, encoding="utf-8")
    return "one.html"


def test_text_is_escaped_and_umlauts_stay(own_templates: Path) -> None:
    name = _page_of(own_templates, '<p title="{{ name }}">{{ name }}</p>')
    html = render(name, name='Müller"<script>alert(1)</script>').decode()
    assert "<script>" not in html
    assert "Müller&#34;&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_a_name_that_is_no_unicode_does_not_stop_the_page(own_templates: Path) -> None:
    assert b"M?ller" in render(_page_of(own_templates, "{{ name }}"), name="M\udcfcller")


def test_a_forgotten_name_is_an_error(own_templates: Path) -> None:
    with pytest.raises(UndefinedError, match="volumne"):
        render(_page_of(own_templates, "{{ volumne }}"), volume=1)


def test_only_scripts_and_styles_of_the_package_may_run(own_templates: Path) -> None:
    (own_templates / "own.js").write_text("document.title = 'ä';\n", encoding="utf-8")
    html = render(_page_of(own_templates, '{{ script("templates/own.js") }}')).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    hashes = {
        element: base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        for element, content in re.findall(r"<(script|style)>(.*?)</\1>", html, re.DOTALL)
    }
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def test_a_page_without_scripts_allows_none(own_templates: Path) -> None:
    assert b"script-src 'none'" in render(_page_of(own_templates, "text"))


def test_text_cannot_change_the_policy(own_templates: Path) -> None:
    html = render(_page_of(own_templates, "{{ name }}"), name="COVIDSEG-CONTENT-SECURITY-POLICY").decode()
    assert html.count("default-src") == 1
    assert html.index("default-src") < html.index("<title>")
    assert "COVIDSEG-CONTENT-SECURITY-POLICY" in html


@pytest.mark.parametrize("ending", ["'</script>'", "'</SCRIPT '", "'<!--'"])
def test_a_script_that_a_browser_would_cut_off_is_refused(own_templates: Path, ending: str) -> None:
    (own_templates / "own.js").write_text(f"const a = {ending};", encoding="utf-8")
    with pytest.raises(ValueError, match=r"own\.js holds one of"):
        render(_page_of(own_templates, '{{ script("templates/own.js") }}'))


def test_the_same_values_give_the_same_bytes() -> None:
    assert render("base.html") == render("base.html")


def test_a_data_url_holds_its_content() -> None:
    assert data_url(b"\x00\xff", "image/png") == "data:image/png;base64,AP8="


def test_niivue_is_the_one_that_was_looked_at() -> None:
    assert hashlib.sha256(NIIVUE.read_bytes()).hexdigest() == (
        "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    )
    assert "BSD 2-Clause License" in (NIIVUE.parent / "LICENSE").read_text(encoding="utf-8")
