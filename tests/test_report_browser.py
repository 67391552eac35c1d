"""The report in a real browser, offline: slider, panel, tooltips, keyboard, accessibility."""

import re

import numpy as np
import pytest
import reports

from score_jax.cli.report import render, write_report
from score_jax.cli.report_comparison import comparison_part
from score_jax.cli.report_data import read_run

QUICKLY = {"resultTypes": ["violations"]}
"""axe-core then describes no element that passes."""
SIZES = ((400, 800), (1400, 900))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of one run, of points, of almost nothing, and of two runs side by side."""
    folder = tmp_path_factory.mktemp("reports")
    one = reports.workdir_of_digits(folder / "one")
    other = reports.workdir_of_digits(folder / "other", seed=1, loss=8.6)
    points = reports.workdir_of_points(folder / "points")
    nothing = reports.workdir_of_nothing(folder / "nothing")
    for each in (one, points, nothing):
        write_report(each)
    both = folder / "both"
    reports.write_comparison(both, [one, other])
    runs = [read_run(each, f"r{place}") for place, each in enumerate((one, other))]
    (both / "report.html").write_text(render(runs, comparison_part(both, runs)))
    folders = {"one": one, "points": points, "nothing": nothing, "both": both}
    return {name: each / "report.html" for name, each in folders.items()}


@pytest.fixture
def visit(browser, pages):
    """Opens a report offline; fails for a message on the console, an error or a request."""
    contexts, troubles = [], []

    def opened(name, width=1400, height=900, scheme="light", **more):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            offline=True,
            **more,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        address = pages[name].as_uri()
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))

        def check(request):
            if request.url != address and not request.url.startswith("data:"):
                troubles.append(f"request: {request.url}")

        page.on("request", check)
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not troubles


def sprite(page):
    """The source of the picture that is shown."""
    sources = page.eval_on_selector_all(
        ".sheet img.frame", "all => all.filter(e => e.offsetWidth > 0).map(e => e.src)"
    )
    [source] = sources
    return source


def test_the_slider_walks_the_chain(visit):
    page = visit("one")
    slider = page.get_by_label("Walk the chain")
    assert slider.get_attribute("max") == "5"  # five states and the samples
    last, words = sprite(page), page.locator(".sigma").inner_text()
    assert "end of the chain" in words
    slider.fill("0")
    first = sprite(page)
    assert first != last
    assert page.locator(".sigma .value").inner_text() == "1"
    assert slider.get_attribute("aria-valuetext") == "sigma 1"

    # By keyboard, too.
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert sprite(page) not in (first, last)
    assert re.search(r"0\.41", page.locator(".sigma .value").inner_text())
    assert page.locator(".sigma .place").inner_text() == "2 of 6"
    page.keyboard.press("End")
    assert sprite(page) == last


def test_play_shows_every_frame(visit):
    page = visit("one")
    page.get_by_role("button", name="Play").click()
    assert page.get_by_label("Walk the chain").input_value() != "5"
    page.locator("input[type=range][aria-valuetext='sigma end of the chain']").wait_for()
    assert page.locator(".play").get_attribute("aria-pressed") == "false"


def test_a_click_on_a_sample_shows_its_nearest_training_images(visit):
    page = visit("one")
    page.get_by_role("button", name="Sample 3, class").click()
    panel = page.get_by_role("dialog")
    assert panel.get_by_role("heading", level=2).inner_text() == "Sample 3"
    nearest = panel.locator(".nearest li")
    assert nearest.count() == 5
    # The samples of the test are training examples with a little noise.
    assert re.search(r"no\. 3\s+class \d\s+distance \d", nearest.first.inner_text())
    assert panel.locator(".trajectory li").count() == 6
    boxes = nearest.locator(".crop").evaluate_all(
        "all => all.map(e => [e.style.backgroundPosition, e.offsetWidth, e.offsetHeight])"
    )
    assert len({place for place, _, _ in boxes}) == 5
    assert all(width > 30 and abs(width - height) < 2 for _, width, height in boxes)
    panel.get_by_role("button", name="Next sample").click()
    assert panel.get_by_role("heading", level=2).inner_text() == "Sample 4"

    # Escape closes it, and the focus returns to the sample.
    page.keyboard.press("Escape")
    assert panel.count() == 0
    assert page.evaluate("document.activeElement.dataset.index") == "4"


def test_the_samples_are_walked_and_opened_by_keyboard(visit):
    page = visit("one")
    page.locator(".sample").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.index") == "11"
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").get_by_role("heading", level=2).inner_text() == "Sample 11"
    assert page.evaluate("document.activeElement.id") == "panel-title"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.index") == "11"
    # One tab stop for all samples.
    page.keyboard.press("Tab")
    assert page.evaluate("!document.activeElement.matches('.sample')")


def test_the_picture_in_the_panel_is_the_sample(visit):
    """A screenshot of the crop has the pixels of the sample in the sprite."""
    page = visit("one")
    page.locator(".sample").nth(13).click()
    page.locator(".panel-top .crop").screenshot()
    same = page.evaluate(
        """() => {
          const frames = document.querySelectorAll('.sheet img.frame');
          const style = document.querySelector('.crop.large').style;
          return [style.backgroundImage.includes(frames[frames.length - 1].src),
                  style.backgroundPosition, style.backgroundSize];
        }"""
    )
    # 24 samples in rows of ten: number 13 is in column 3 of row 1.
    assert same[0]
    x, y = (float(each.rstrip("%")) for each in same[1].split())
    np.testing.assert_allclose([x, y], [100 * 3 / 9, 100 * 1 / 2], rtol=1e-3)
    assert same[2] == "1000% 300%"


def test_a_number_explains_itself_on_hover_and_on_focus(visit):
    page = visit("one")
    number = page.locator(".verdict .number[data-key=fd_classifier]")
    tip = page.locator("#tip")
    assert not tip.is_visible()
    number.hover()
    words = tip.inner_text()
    assert "Not a published FID" in words
    assert "± is the bootstrap standard error" in words
    assert "Floor: 1.500 ± 0.050." in words
    assert "Unit: squared features." in words
    assert "Lower is better." in words
    page.mouse.move(0, 0)
    tip.wait_for(state="hidden")

    # By keyboard; Escape closes it and keeps the focus.
    number.focus()
    assert tip.is_visible()
    assert number.get_attribute("aria-describedby") == "tip"
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    assert page.evaluate("document.activeElement.dataset.key") == "fd_classifier"
    assert number.get_attribute("aria-describedby") == "d-fd_classifier"


def test_a_tap_explains_a_number_and_stays_on_the_screen(visit):
    page = visit("one", 400, 800, has_touch=True, is_mobile=True)
    for number in page.locator("#metrics .number").all()[:6]:
        number.scroll_into_view_if_needed()
        number.tap()
        box = page.locator("#tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400
        page.locator("#tip").tap()
        assert not page.locator("#tip").is_visible()
    page.locator("h2").first.tap()
    assert not page.locator("#tip").is_visible()


def test_a_point_of_a_chart_explains_itself(visit):
    page = visit("one")
    page.locator("#levels .plot circle.mark").first.hover()
    words = page.locator("#tip").inner_text()
    assert re.search(r"held-out loss: \d\.\d+ ± 0\.10 at sigma 1", words)
    page.locator("#levels .axis").first.locator("text.label").hover()
    assert "weighted by sigma squared" in page.locator("#tip").inner_text()


def test_tables_are_walked_by_arrow_keys(visit):
    page = visit("one")
    page.locator("#levels details summary").first.click()
    table = page.locator("#levels table.numbers").first
    assert table.get_attribute("role") == "grid"
    assert table.locator("[tabindex='0']").count() == 1
    table.locator("[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    cell = page.evaluate("document.activeElement.closest('tr').rowIndex")
    assert cell == 2
    assert page.evaluate("document.activeElement.dataset.key") == "loss"


@pytest.mark.parametrize("size", SIZES)
def test_the_tooltip_is_above_the_panel(size, visit):
    page = visit("one", *size)
    page.locator(".sample").first.click()
    page.get_by_role("dialog").locator(".nearest .number[data-key=distance]").first.hover()
    assert "Euclidean distance" in page.locator("#tip").inner_text()
    box, frame = page.locator("#tip").bounding_box(), page.locator("#panel").bounding_box()
    assert box["x"] > frame["x"]
    assert box["x"] + box["width"] < frame["x"] + frame["width"]
    on_top = page.evaluate(
        """() => {
          const box = document.getElementById('tip').getBoundingClientRect();
          const top = document.elementFromPoint(box.x + box.width / 2, box.y + 5);
          return Boolean(top.closest('#tip'));
        }"""
    )
    assert on_top


@pytest.mark.parametrize("name", ["one", "points", "nothing", "both"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen(name, size, visit):
    page = visit(name, *size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_the_slider_moves_points(visit):
    page = visit("points")
    where = "e => e.querySelector('.frame:not([hidden]) circle').getAttribute('cx')"
    before = page.eval_on_selector(".scatter", where)
    page.get_by_label("Walk the chain").fill("0")
    assert page.eval_on_selector(".scatter", where) != before


def test_each_run_of_several_has_its_own_slider_and_panel(visit):
    page = visit("both")
    sliders = page.get_by_label("Walk the chain")
    assert sliders.count() == 2
    words = page.locator(".sigma .value")
    sliders.nth(1).fill("0")
    assert words.all_inner_texts() == ["end of the chain", "1"]
    page.locator("#r1-chain .sample").nth(2).click()
    crop = page.locator(".crop.large").evaluate("e => e.style.backgroundImage")
    assert page.locator("#r1-chain img.frame").last.get_attribute("src") in crop


def test_printing_shows_all_numbers(visit):
    page = visit("one")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 5


def test_without_scripts_the_samples_and_definitions_are_there(visit):
    page = visit("one", java_script_enabled=False)
    assert page.locator(".sheet img.frame").last.is_visible()
    assert page.locator("#d-fd_classifier").is_visible()


@pytest.fixture(scope="module")
def axe():
    """axe-core."""
    return pytest.importorskip(
        "axe_core_python.sync_playwright", reason="needs axe-core-python"
    ).Axe()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing(size, scheme, visit, axe):
    page = visit("one", *size, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
    assert violations(axe.run(page, options=QUICKLY)) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_panel_and_the_tooltip(scheme, visit, axe):
    page = visit("one", 400, 800, scheme=scheme)
    page.locator(".sample").nth(5).click()
    page.get_by_role("dialog").locator(".number").first.hover()
    page.locator("#tip").wait_for()
    assert violations(axe.run(page, "#panel", QUICKLY)) == []


@pytest.mark.parametrize("name", ["points", "nothing", "both"])
def test_axe_finds_nothing_in_other_reports(name, visit, axe):
    assert violations(axe.run(visit(name), options=QUICKLY)) == []


def violations(found):
    """(rule, element) of what axe-core found."""
    return [
        (each["id"], node["html"][:200]) for each in found["violations"] for node in each["nodes"]
    ]
