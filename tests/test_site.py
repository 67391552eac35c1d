"""The documentation site builds without a warning, and its pages work without a network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("sphinx", reason="needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages, built in a process of their own as the documentation says."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(out)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return out


class Page(HTMLParser):
    """Targets, anchors and outside resources of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.loaded = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.anchors.add(attrs["id"])
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag in ("img", "script", "iframe", "source"):
            self.loaded.append(attrs.get("src") or "")
        if tag == "link" and attrs.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(attrs["href"])


def pages(site):
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def test_every_internal_link_leads_somewhere(site):
    found = pages(site)
    assert len(found) > 30
    for path, page in found.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link == "#" or path.name in ("genindex.html", "search.html"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target in found:
                assert unquote(parts.fragment) in found[target].anchors, f"{path.name}: {link}"


def test_nothing_is_loaded_from_elsewhere(site):
    for path, page in pages(site).items():
        outside = [target for target in page.loaded if urlsplit(target).netloc]
        assert not outside, f"{path}: {outside}"


def test_mathematics_is_in_the_page(site):
    text = (site / "paper.html").read_text()
    displayed = '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">'
    source = (ROOT / "docs" / "paper.md").read_text()
    assert 2 * text.count(displayed) == source.count("$$") > 8
    assert not re.search(r"\\\(|\$\$", text)


def test_every_public_name_has_an_entry(site):
    import score_jax as sj

    entries = set()
    for path in (site / "api").glob("*.html"):
        entries |= {anchor.rpartition(".")[2] for anchor in Page(path.read_text()).anchors}
    assert not set(sj.__all__) - entries


WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


def test_pages_in_a_browser(site, browser):
    """No error, no request to the network, no page that is wider than a phone."""
    context = browser.new_context(viewport={"width": 400, "height": 800})
    problems = []
    page = context.new_page()
    page.on("console", lambda message: message.type == "error" and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: request.url.startswith("http") and problems.append(request.url),
    )
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        assert not problems, f"{path.name}: {problems}"
        assert not page.evaluate(WIDE), f"{path.name} is wider than 400 pixels"

    # The search finds a function from its name.
    page.goto((site / "search.html").as_uri() + "?q=annealed_langevin")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li a").count() >= 1
    context.close()
