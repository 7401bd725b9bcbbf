"""The seam to jinja2: nothing that a scan says becomes code, and a browser runs only what the policy names."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest

from covidseg_runtime.pages import page as page_module
from covidseg_runtime.pages.page import data_url, render

PAGES = Path(page_module.__file__).parent
HOSTILE = "<script>alert(1)</script>\"'&Lungenentzündung.nii.gz"
# Every template has these two; what a page needs more is in the template.
PAGE_OF_NAME = """{% extends "base.html" %}
{% block title %}{{ name }}{% endblock %}
{% block main %}<p id="name" title="{{ name }}">{{ name }}</p>
<script type="application/json" id="data">{{ {"name": name} | tojson }}</script>{% endblock %}
{% block scripts %}{% for one in scripts %}{{ script(one) }}{% endfor %}{% endblock %}
"""
NIIVUE = "niivue/niivue-0.69.0.umd.js"


class Elements(HTMLParser):
    """Elements as a browser finds them: their attributes, and the text within each."""

    def __init__(self, page: str) -> None:
        """Read a page to its end."""
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.is_open = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.found.append((tag, dict(attrs), ""))
        self.is_open = True

    def handle_endtag(self, tag: str) -> None:
        """What follows is not in it."""
        self.is_open = False

    def handle_data(self, data: str) -> None:
        """Note text at the element that was opened last, up to its end."""
        if self.is_open:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, text + data)

    def named(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of the elements of one kind."""
        return [(attributes, text) for found, attributes, text in self.found if found == tag]


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's folder of pages once more, with the template name.html, in a place where a test may add to it."""
    (tmp_path / "templates").mkdir()
    for name in ("base.html", "style.css", "viewer.js"):
        (tmp_path / "templates" / name).write_bytes((PAGES / "templates" / name).read_bytes())
    (tmp_path / "templates" / "name.html").write_text(PAGE_OF_NAME, encoding="utf-8")
    monkeypatch.setattr(page_module, "_HERE", tmp_path)
    return tmp_path


def _hashes(texts: list[str]) -> list[str]:
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return [f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests]


def _policy(elements: Elements) -> dict[str, list[str]]:
    (content,) = (
        attributes["content"]
        for attributes, _ in elements.named("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert content is not None
    words = (directive.split() for directive in content.split(";"))
    return {name: sources for name, *sources in words}


@pytest.mark.usefixtures("templates")
def test_a_hostile_name_stays_text_wherever_it_stands() -> None:
    html = render("name.html", name=HOSTILE, scripts=()).decode()
    assert "<script>alert" not in html
    elements = Elements(html)
    assert elements.named("title")[0][1] == HOSTILE
    ((attributes, text),) = [found for found in elements.named("p") if found[0].get("id") == "name"]
    assert (attributes["title"], text) == (HOSTILE, HOSTILE)
    # Within JSON it is escaped as JSON is, so that the element's end is its own.
    ((_, data),) = elements.named("script")
    assert "<" not in data
    assert "alert(1)" in unescape(data)


@pytest.mark.usefixtures("templates")
def test_a_page_without_script_allows_none_and_loads_from_nowhere() -> None:
    policy = _policy(Elements(render("name.html", name="a", scripts=()).decode()))
    assert policy["script-src"] == ["'none'"]
    assert policy["default-src"] == ["'none'"]
    assert policy["img-src"] == ["data:"]
    assert policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert set(policy) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}


def test_the_policy_names_exactly_the_scripts_and_styles_of_the_page(templates: Path) -> None:
    (templates / "one.js").write_text("let eins = 'ä';\n", encoding="utf-8")
    elements = Elements(render("name.html", name="a", scripts=("one.js", "templates/viewer.js")).decode())
    scripts = [text for attributes, text in elements.named("script") if "type" not in attributes]
    assert len(scripts) == 2
    assert scripts[0] == "let eins = 'ä';\n"
    policy = _policy(elements)
    assert policy["script-src"] == _hashes(scripts)
    assert policy["style-src"] == _hashes([text for _, text in elements.named("style")])


def test_the_policy_stands_before_whatever_it_judges(templates: Path) -> None:
    (templates / "one.js").write_text("1;", encoding="utf-8")
    html = render("name.html", name="a", scripts=("one.js",)).decode()
    assert html.index("Content-Security-Policy") < min(html.index("<style"), html.index("<script"))


@pytest.mark.usefixtures("templates")
def test_a_scan_called_like_the_place_of_the_policy_changes_no_policy() -> None:
    name = page_module._POLICY_PLACE  # noqa: SLF001 - the one word that the seam looks for
    elements = Elements(render("name.html", name=name, scripts=()).decode())
    assert _policy(elements)["default-src"] == ["'none'"]
    assert elements.named("title")[0][1] == name


@pytest.mark.parametrize("end", ["</script>", "</SCRIPT >", "<!-- no -->"])
def test_a_script_that_would_end_its_element_is_refused(templates: Path, end: str) -> None:
    (templates / "bad.js").write_text(f"const text = '{end}';", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.js holds one of"):
        render("name.html", name="a", scripts=("bad.js",))


@pytest.mark.usefixtures("templates")
def test_a_name_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'name' is undefined"):
        render("name.html", scripts=())


@pytest.mark.usefixtures("templates")
def test_the_same_values_give_the_same_bytes() -> None:
    first, second = (render("name.html", name=HOSTILE, scripts=("templates/viewer.js",)) for _ in range(2))
    assert first == second


def test_ends_of_line_are_those_that_a_browser_hashes(templates: Path) -> None:
    (templates / "one.js").write_bytes(b"1;\r\n2;\r")
    elements = Elements(render("name.html", name="a", scripts=("one.js",)).decode())
    assert _policy(elements)["script-src"] == _hashes(["1;\n2;\n"])


def test_a_data_url_holds_its_content() -> None:
    assert data_url(b"\x00covidseg\xff", "image/png") == "data:image/png;base64,AGNvdmlkc2Vn/w=="


def test_the_viewer_is_the_released_file_with_its_licence() -> None:
    digest = hashlib.sha256((PAGES / NIIVUE).read_bytes()).hexdigest()
    assert digest == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    licence = (PAGES / "niivue" / "LICENSE").read_text(encoding="utf-8")
    assert "BSD 2-Clause" in licence
    assert "Niivue" in licence


def test_no_template_or_style_loads_anything() -> None:
    for path in sorted((PAGES / "templates").iterdir()):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"(src|href|action)\s*=\s*[\"']?\s*(https?:)?//", source), path.name
        assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", source), path.name
