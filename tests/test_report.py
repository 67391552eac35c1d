"""The report as a file: its structure, its numbers and definitions, missing and hostile input."""

import base64
import io
import itertools
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import reports
from PIL import Image
from runs import finished_perceptron, perceptron, run_command

from score_jax.cli import charts, glossary, report_images
from score_jax.cli.flags import parse
from score_jax.cli.modes import MODES
from score_jax.cli.report import render, write_report
from score_jax.cli.report_comparison import comparison_part
from score_jax.cli.report_data import read_run
from score_jax.cli.report_neighbors import find_neighbors, median_with_error
from score_jax.cli.report_restorations import read_restorations
from score_jax.cli.settings import flatten
from score_jax.data import sources

INLINE = {"button", "span", "code", "a", "text"}
VOID = {"meta", "img", "input", "br", "link", "hr"}


class Element:
    """An element with its attributes, children and text."""

    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.nodes = []  # Elements and texts.

    def __getitem__(self, name):
        return self.attributes.get(name) or ""

    @property
    def classes(self):
        return set(self["class"].split())

    @property
    def children(self):
        return [node for node in self.nodes if isinstance(node, Element)]

    @property
    def texts(self):
        return [node for node in self.nodes if isinstance(node, str)]

    def all(self):
        yield self
        for child in self.children:
            yield from child.all()

    def find(self, tag=None, name=None):
        """Descendants of a tag, with a class."""
        return [
            each
            for each in self.all()
            if each is not self
            and (tag is None or each.tag == tag)
            and (name is None or name in each.classes)
        ]

    def text(self):
        return " ".join(self._text().split())

    def _text(self):
        inside = "".join(each if isinstance(each, str) else each._text() for each in self.nodes)
        return inside if self.tag in INLINE else f" {inside} "

    def within(self, condition):
        each = self
        while each is not None:
            if condition(each):
                return True
            each = each.parent
        return False


class Page(HTMLParser):
    """A tree of elements; fails for end tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.root = self._at = Element("root", {}, None)
        self.feed(text)
        self.close()
        assert self._at is self.root, f"<{self._at.tag}> is not closed"
        self._ids = {each["id"]: each for each in self.root.all() if each["id"]}

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), attributes
        element = Element(tag, dict(attributes), self._at)
        self._at.nodes.append(element)
        if tag not in VOID:
            self._at = element

    def handle_startendtag(self, tag, attributes):
        self._at.nodes.append(Element(tag, dict(attributes), self._at))

    def handle_endtag(self, tag):
        assert tag == self._at.tag, f"</{tag}> ends <{self._at.tag}>"
        self._at = self._at.parent

    def handle_data(self, data):
        self._at.nodes.append(data)

    def by_id(self, id):
        return self._ids[id]


def page_of(folder):
    write_report(folder)
    return Page((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A complete workdir, not to be changed."""
    return reports.workdir_of_digits(tmp_path_factory.mktemp("digits") / "run", number=100)


@pytest.fixture(scope="module")
def page(digits):
    """Its report."""
    return page_of(digits)


@pytest.fixture
def copied(tmp_path):
    """A complete workdir, to be changed."""
    return reports.workdir_of_digits(tmp_path / "run", number=12, frames=2)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The report of two runs, with their comparison."""
    folder = tmp_path_factory.mktemp("both")
    runs = [
        reports.workdir_of_digits(folder / name, seed, number=12, frames=2)
        for seed, name in enumerate(("a", "b"))
    ]
    reports.write_comparison(folder, runs)
    read = [read_run(each, f"r{place}") for place, each in enumerate(runs)]
    return Page(render(read, comparison_part(folder, read)))


# Structure


@pytest.mark.parametrize("kind", ["digits", "points", "nothing", "both"])
def test_ids_are_unique_and_references_lead_somewhere(kind, page, both, tmp_path):
    made = {"points": reports.workdir_of_points, "nothing": reports.workdir_of_nothing}
    found = {"digits": page, "both": both}.get(kind) or page_of(made[kind](tmp_path / "run"))
    ids = [each["id"] for each in found.root.all() if each["id"]]
    assert len(set(ids)) == len(ids)
    for each in found.root.all():
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert set(each[name].split()) <= set(ids), (each.tag, each.attributes)
        if each["href"].startswith("#"):
            assert each["href"][1:] in ids


def test_landmarks_headings_and_labels(page):
    root = page.root
    [html] = root.find("html")
    assert html["lang"] == "en"
    assert [len(root.find(tag)) for tag in ("main", "h1", "nav", "footer")] == [1, 1, 1, 1]
    headings = [int(each.tag[1]) for each in root.all() if re.fullmatch(r"h\d", each.tag)]
    assert headings[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    assert all("alt" in each.attributes for each in root.find("img"))
    named = [each.text() or each["aria-label"] for each in root.find("button")]
    assert all(name for each, name in zip(root.find("button"), named, strict=True))
    [slider] = root.find("input")
    assert slider["id"] in [each["for"] for each in root.find("label")]
    assert page.by_id(slider["aria-describedby"])["aria-live"] == "polite"
    for each in root.find("svg"):
        if each["role"] == "img":
            assert each.find("title")[0].text()
            assert each.find("desc")[0].text()
    assert all(each["scope"] for each in root.find("th"))


def test_the_first_screen_answers_whether_the_run_is_good(page):
    [title] = page.root.find("head")[0].find("title")
    assert title.text() == "run: 1 warning, held-out loss 7.60"
    [verdict] = page.root.find("div", "verdict")
    words = verdict.text()
    assert words.startswith("Look at the warnings first.")
    assert "Held-out loss 7.60 ± 0.10" in words
    assert "fd_classifier 1.790 ± 0.080 floor 1.500 ± 0.050" in words
    [warnings, *_] = page.root.find("ul", "warnings")
    assert warnings.text() == "At level 2 (sigma 0.37) the step is 5 times too large."


# The page loads nothing


@pytest.mark.parametrize("found", ["page", "both"])
def test_nothing_is_loaded_from_elsewhere(found, request):
    root = request.getfixturevalue(found).root
    for each in root.all():
        for name, value in each.attributes.items():
            if name in ("src", "href", "action", "poster", "data", "srcset", "xlink:href"):
                assert (value or "").startswith(("#", "data:image/")), value
            assert not name.startswith("on"), "no handlers in attributes"
        if each.tag in ("style", "script"):
            assert not re.search(
                r"https?:|url\(\s*[\"']?(?!\$)[a-z/]|@import|fetch\(", each.text()
            )
    assert not root.find("link")
    policies = [each["content"] for each in root.find("meta") if each["http-equiv"]]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    ]


def test_a_report_of_digits_is_small(tmp_path):
    """A hundred samples with 16 states of their chains."""
    folder = reports.workdir_of_digits(tmp_path / "run", number=100, frames=16)
    write_report(folder)
    assert (folder / "report.html").stat().st_size < 450_000


def image_of(uri):
    head, _, data = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/webp;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))


def test_the_last_frame_holds_the_samples_and_the_others_the_chain(digits, page):
    with np.load(digits / "samples.npz") as file:
        held = {name: file[name] for name in file.files}
    frames = page.root.find("img", "frame")
    assert [each["data-sigma"] for each in frames] == [
        "1",
        "0.416",
        "0.173",
        "0.0721",
        "0.03",
        "",
    ]
    assert ["hidden" in each.attributes for each in frames] == [True] * 5 + [False]
    for frame, expected in ((5, held["samples"]), (1, held["chain"][1] / 255)):
        picture = image_of(frames[frame]["src"])
        assert picture.shape == (80, 80)
        cell = picture[8:16, 24:32]  # number 13: row 1, column 3
        np.testing.assert_allclose(cell / 255, expected[13, ..., 0], atol=1 / 200)


# Numbers and definitions


def defined(page):
    return {each["id"] for each in page.root.all() if each["id"].startswith("d-")}


@pytest.mark.parametrize("found", ["page", "both"])
def test_every_number_leads_to_its_definition(found, request):
    given = request.getfixturevalue(found)
    numbers = given.root.find("button", "number") + given.root.find("button", "term")
    assert len(numbers) > 100
    for each in numbers:
        assert each["aria-describedby"] == f"d-{each['data-key']}"
        assert each["type"] == "button"
        entry = given.by_id(each["aria-describedby"])
        assert len(entry.text()) > 2
        assert entry["data-name"]
        assert entry["data-error"]
    for each in given.root.find(None, "mark") + given.root.find("g", "axis"):
        if each["data-key"]:
            assert f"d-{each['data-key']}" in defined(given)


@pytest.mark.parametrize("found", ["page", "both"])
def test_no_number_stands_without_a_definition(found, request):
    """Digits of the text are in numbers, or in names, code, sentences of others, definitions."""
    root = request.getfixturevalue(found).root

    def explained(element):
        return bool(
            element.classes & {"number", "term", "meaning", "glossary", "warnings", "about", "run"}
            or element.tag in ("code", "script", "style", "title", "desc", "h1", "h3", "nav")
            or element.tag == "footer"
            # Ticks of an axis: the group explains itself. Verdicts and names of runs are words.
            or (element.tag == "g" and element["data-key"])
            or {"verdict-cell", "caption", "note"} & element.classes
        )

    for each in root.all():
        for text in each.texts:
            if re.search(r"\d", text) and not each.within(explained):
                # Names of files and of objectives hold no measured number.
                assert re.fullmatch(r"\W*(0, value ●, floor \||Numbers.*|.*/.*)\W*", text), text


def test_errors_and_floors_are_shown_where_they_are_known(page):
    entries = json.loads((reports_folder(page)).read_text())["entries"][0]["metrics"]
    table = page.by_id("metrics").find("table", "numbers")[0]
    rows = table.find("tbody")[0].find("tr")
    assert len(rows) == len(entries)
    for row, metric in zip(rows, entries, strict=True):
        value, floor, *_ = row.find("td")
        [number] = value.find("button", "number")
        assert ("±" in number.text()) == (metric["error"] is not None)
        if metric["floor"] is None:
            assert floor.text() == "–"  # noqa: RUF001
            assert number["data-floor"] == ""
        else:
            assert number["data-floor"].split(" ")[0] == charts.shown(
                metric["floor"], metric["floor_error"]
            )


def reports_folder(page):
    """quality.json of the run of a page."""
    [command] = [each for each in page.root.find("code") if "--task" in each.text()]
    return Path(parse(shlex.split(command.text())[1:]).workdir) / "quality.json"


def test_charts_have_their_numbers_as_a_table(digits, page):
    levels = json.loads((digits / "evaluation.json").read_text())["levels"]
    [figure, *_] = page.by_id("levels").find("figure", "chart")
    rows = figure.find("tbody")[0].find("tr")
    shown = [[each.text() for each in row.find("button")] for row in rows]
    expected = [
        [charts.shown(each["sigma"]), f"{charts.shown(each['loss'], 0.1)} ± 0.10"]
        for each in sorted(levels, key=lambda each: each["sigma"])
    ]
    assert shown == expected


def test_every_metric_that_other_modes_write_is_defined():
    names = "fd_classifier fd_classifier_unlimited kd_classifier is_classifier precision recall "
    names += "density coverage fid fid_unlimited kid inception_score fd_pixels fd_features "
    names += "fd_pixels_unlimited fd_features_unlimited kd_pixels kd_features"
    for name in names.split():
        assert glossary.define(name).definition
    assert len({term.name for term in glossary.TERMS.values()}) == len(glossary.TERMS)
    for term in glossary.TERMS.values():
        assert term.definition.endswith(".")
        assert not term.error.endswith(".")
        assert term.better in glossary.BETTER
    assert glossary.define("config.noise.sigma_max").definition.startswith("Largest noise level")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.79123, 0.0831, "1.791"),
        (1.79123, None, "1.791"),
        (123456.0, None, "123,456"),
        (0.0, 0.1, "0.00"),
        (-0.25, 0.013, "−0.250"),  # noqa: RUF001
        (2.0, None, "2"),
        (1e-7, None, "1e−07"),  # noqa: RUF001
        (12.3, 25.0, "12"),
        (float("nan"), None, "not finite"),
        (None, None, "–"),  # noqa: RUF001
    ],
)
def test_numbers_are_shown_with_the_digits_that_their_error_leaves(value, error, text):
    assert charts.shown(value, error) == text


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "ends", [(0.03, 1.0), (1e-3, 50.0), (1e-6, 1e6), (7.0, 7.0), (99.0, 99.5), (0.2, 0.9)]
)
def test_axes_hold_their_values_and_a_few_ticks(ends, log):
    axis = charts.axis("x", "sigma", ends, log=log)
    assert all(0 <= axis.at(end) <= 1 for end in ends)
    assert len(axis.ticks) <= charts.MAX_TICKS
    assert all(0 <= axis.at(tick) <= 1 for tick in axis.ticks)
    assert log or len(axis.ticks) >= 2
    assert list(axis.ticks) == sorted(set(axis.ticks))


def test_long_curves_are_averaged_in_groups():
    points = [charts.Point(float(n), float(n % 2)) for n in range(1000)]
    found = charts.averaged(points)
    assert len(found) <= charts.MAX_POINTS
    assert np.mean([point.x for point in found[:-1]]) == pytest.approx(499.5, rel=0.01)
    assert charts.averaged(points[:10]) == tuple(points[:10])


# Nearest training images


def samples_of(x, **arrays):
    return report_images._samples({"samples": x, **arrays})


def test_copies_are_found_and_new_images_are_not():
    """Training images are copies; held-out ones are as new as images can be."""
    data = sources.digits()
    settings = {"dequantize": True}
    copies = samples_of((data.train[:100] + 0.5) / 17)
    found = find_neighbors(copies, settings, data)
    assert [each[0][1] for each in found.nearest] == list(range(100))
    assert [each[0][2] for each in found.nearest] == data.train_labels[:100].tolist()
    np.testing.assert_allclose(found.samples, 0, atol=1e-6)
    assert found.near_share[0] == 1
    assert max(found.ranks) == 0

    new = samples_of((data.held_out[:100] + 0.5) / 17)
    found = find_neighbors(new, settings, data)
    share, error = found.near_share
    assert abs(share - 0.05) < 5 * error
    train = (data.train + 0.5) / 17
    away = np.linalg.norm((new.x[:, None] - train[None]).reshape(100, len(train), -1), axis=2)
    for i, each in enumerate(found.nearest):
        listed = [distance for _, _, _, distance in each]
        np.testing.assert_allclose(listed, np.sort(away[i])[:5], rtol=1e-5)
        named = [away[i, number] for _, number, _, _ in each]
        np.testing.assert_allclose(listed, named, rtol=1e-5)


def test_the_sprite_of_neighbors_holds_the_images_that_are_named():
    data = sources.digits()
    found = find_neighbors(samples_of((data.held_out[:9] + 0.5) / 17), {"dequantize": True}, data)
    picture = image_of(found.image)
    for each in found.nearest:
        for position, number, _, _ in each:
            row, column = divmod(position, found.columns)
            cell = picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            np.testing.assert_allclose(
                cell / 255, (data.train[number, ..., 0] + 0.5) / 17, atol=1 / 200
            )


def test_the_error_of_a_median_is_that_of_simulations():
    """For a normal distribution the median of n values has the variance pi / (2 n)."""
    rng = np.random.default_rng(0)
    errors = [median_with_error(rng.standard_normal(400))[1] for _ in range(200)]
    assert np.mean(errors) == pytest.approx(np.sqrt(np.pi / 800), rel=0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_reduced(channels):
    rng = np.random.default_rng(0)
    x = rng.random((3, 150, 200, channels)).astype(np.float32)
    found = samples_of(x)
    assert (found.height, found.width, found.reduced) == (38, 50, True)
    picture = image_of(found.frames[-1].image)
    assert picture.shape == (38, 150)


def test_the_end_of_the_chain_is_shown_once():
    x = np.full((2, 8, 8, 1), 0.5, np.float32)
    chain = np.stack([np.zeros_like(x), x])
    pixels = (255 * chain).astype(np.uint8)
    for given in (chain, pixels):
        found = samples_of(x, chain=given, chain_sigma=np.array([1.0, 0.1]))
        assert [frame.sigma for frame in found.frames] == [1.0, 0.1]
    found = samples_of(x, chain=pixels[:1], chain_sigma=np.array([1.0]))
    assert [frame.sigma for frame in found.frames] == [1.0, None]
    assert [frame.sigma for frame in samples_of(x).frames] == [None]


# Inverse problems


def test_a_correct_posterior_has_the_errors_that_its_definition_says(tmp_path):
    """Originals and completions are draws of the same Gaussian, which is then the posterior."""
    rng = np.random.default_rng(0)
    number, completions = 200, 4
    originals = rng.standard_normal((number, 4, 4, 1))
    ends = rng.standard_normal((number, completions, 4, 4, 1))
    mask = np.zeros((4, 4, 1), bool)
    mask[:, :2] = True
    settings = {"task": "deblur:1", "posterior": "dps", "noise": 0.1, "step": 3, "seed": 0}
    np.savez(
        tmp_path / "a.npz",
        completions=ends,
        originals=originals,
        mask=mask,
        settings=json.dumps({}),
    )
    np.savez(
        tmp_path / "b.npz",
        samples=ends,
        originals=originals,
        misfit=np.ones((number, completions)),
        settings=json.dumps(settings),
    )
    shutil.copy(tmp_path / "b.npz", tmp_path / ".b.host-1.npz")  # A temporary file
    (tmp_path / "c.npz").symlink_to("removed meanwhile")
    found = {each.name: each for each in read_restorations(tmp_path)}
    assert set(found) == {"a", "b"}
    assert found["b"].title == "Restoration: deblur:1, dps"
    for each in found.values():
        values = {key: (value, error) for key, value, error in each.values}
        rmse, error = values["rmse"]
        assert abs(rmse - np.sqrt(1 + 1 / completions)) < 5 * error
        std, error = values["std"]
        assert abs(std - 1) < 5 * error
        assert values["images"] == (number, None)
    assert {key: value for key, value, _ in found["b"].values}["misfit"] == 1


# Missing, damaged and hostile files

FILES = {
    "samples.npz": ("samples", "samples.npz is missing"),
    "metrics.json": ("training", "metrics.json is missing"),
    "evaluation.json": ("levels", "evaluation.json is missing"),
    "quality.json": ("metrics", "quality.json is missing"),
    "diagnostics.json": ("diagnostics", "diagnostics.json is missing"),
    "provenance.json": ("origin", "provenance.json is missing"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_leaves_one_sentence_and_the_command(name, copied):
    (copied / name).unlink()
    section, sentence = FILES[name]
    found = page_of(copied)
    [missing] = found.by_id(section).find("p", "missing")
    assert missing.text().startswith(sentence)
    [command] = missing.find("code")
    words = shlex.split(command.text())
    assert words[0] == "score-jax"
    mode = next(word for word in words if word.startswith("--mode=")).partition("=")[2]
    if mode in MODES:
        assert parse(words[1:]).workdir == copied
    others = [key for key, _ in FILES.values() if key != section]
    assert not [key for key in others if found.by_id(key).find("p", "missing")]


def test_a_workdir_with_a_config_alone_has_a_report(tmp_path):
    found = page_of(reports.workdir_of_nothing(tmp_path / "run"))
    for section, sentence in FILES.values():
        assert sentence in found.by_id(section).text()
    assert "Not judged yet" in found.root.find("p", "answer")[0].text()
    assert "No inverse problems" in found.by_id("inverse").text()
    assert found.by_id("config").find("td", "meaning")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"levels": 3, "entries": [3], "train_loss": 1, "samples": 2}']
)
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("json")])
def test_a_damaged_file_leaves_the_rest(name, content, copied):
    (copied / name).write_text(content)
    found = page_of(copied)
    [missing, *_] = found.by_id(FILES[name][0]).find("p", "missing")
    assert re.search(r"cannot be read|expected form|holds no|is missing", missing.text())
    assert found.by_id("samples").find("img", "frame")


def test_damaged_samples_leave_the_rest(copied):
    (copied / "samples.npz").write_bytes(b"PK nothing")
    assert "samples.npz cannot be read" in page_of(copied).by_id("samples").text()
    np.savez(copied / "samples.npz", samples=np.zeros(3))
    assert "samples.npz cannot be read" in page_of(copied).by_id("samples").text()


def test_without_the_data_the_neighbors_are_left_out(copied):
    config = json.loads((copied / "config.json").read_text())
    config["data"] |= {"source": "npz", "path": "/none.npz"}
    reports.write_json(copied / "config.json", config)
    found = page_of(copied).by_id("samples")
    assert "because the data are not at hand (config.data.path='/none.npz'" in found.text()
    assert found.find("img", "frame")


def test_data_of_another_shape_are_not_compared(copied):
    with np.load(copied / "samples.npz") as file:
        held = {name: file[name] for name in file.files if not name.startswith("chain")}
    held["samples"] = np.zeros((4, 5, 5, 1), np.float32)
    np.savez(copied / "samples.npz", **held)
    assert (
        "those at hand are [8, 8, 1], but the samples [5, 5, 1]"
        in page_of(copied).by_id("samples").text()
    )


def test_files_of_other_training_steps_are_named(copied):
    evaluation = json.loads((copied / "evaluation.json").read_text())
    reports.write_json(copied / "evaluation.json", evaluation | {"step": 40})
    notes = page_of(copied).root.find("header", "page")[0].find("p", "note")
    assert [each.text() for each in notes] == [
        "evaluation.json is of training step 40, but samples.npz of step 60."
    ]


HOSTILE = "<script>alert(1)</script>"


def test_hostile_names_are_text(tmp_path):
    """The folder's path is a script element, and every text of the files is hostile."""
    folder = tmp_path / "\"'><img src=x onerror=alert(1)>" / HOSTILE
    plain = page_of(reports.workdir_of_digits(tmp_path / "plain", number=12, frames=2))
    reports.workdir_of_digits(folder, number=12, frames=2)
    for name in ("quality.json", "diagnostics.json", "provenance.json"):
        content = (folder / name).read_text()
        for harmless in ("samples.npz", "a_new_metric", "the step is", "2 x cpu", "--config"):
            content = content.replace(harmless, HOSTILE + '\\"><img src=x onerror=alert(1)>')
        (folder / name).write_text(content)
    found = page_of(folder)
    for tag in ("script", "img", "style", "button"):
        assert len(found.root.find(tag)) == len(plain.root.find(tag)), tag
    names = {name for each in found.root.all() for name in each.attributes}
    assert not [name for name in names if name.startswith("on")]
    assert HOSTILE in found.by_id("metrics").text()
    assert HOSTILE in found.by_id("origin").text()
    # The data of the panel are JSON that no name can end.
    data = json.loads(found.by_id("r0-data").text())
    assert data["name"] == "script>"
    assert found.root.find("h1")[0].text() == "script>"


def test_numbers_that_are_not_finite_are_said_to_be(copied):
    quality = json.loads((copied / "quality.json").read_text())
    for metric in quality["entries"][0]["metrics"]:
        metric |= {"value": float("nan"), "error": float("inf"), "floor": None}
    reports.write_json(copied / "quality.json", quality)
    assert "fd_classifier not finite" in page_of(copied).by_id("metrics").text()


# The verdict


def changed_json(path, **content):
    reports.write_json(path, json.loads(path.read_text()) | content)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (1.6, "No warnings. The samples are as close to the reference as real images are."),
        (4.0, "No warnings. The samples are farther from the reference than real images are."),
        (None, "No warnings. The samples have not been measured."),
    ],
)
def test_the_verdict_compares_the_main_metric_with_its_floor(value, sentence, copied):
    changed_json(copied / "diagnostics.json", warnings=[])
    quality = json.loads((copied / "quality.json").read_text())
    quality["entries"][0]["metrics"][0]["value"] = value
    reports.write_json(copied / "quality.json", quality)
    assert page_of(copied).root.find("p", "answer")[0].text() == sentence


def test_warnings_of_the_network_count_as_well(copied):
    changed_json(copied / "evaluation.json", warnings=["Level 3 is untrained."])
    run = read_run(copied)
    assert run.verdict.num_warnings == 2
    assert run.warnings[1] == "Level 3 is untrained."


# Several runs


def test_several_runs_are_side_by_side_with_their_comparison(both):
    comparison = both.by_id("comparison")
    assert "is better" in comparison.text()
    assert "−1.000 ± 0.020" in comparison.text()  # noqa: RUF001
    assert "−1.050 to −0.950" in comparison.text()  # noqa: RUF001
    for section in ("samples", "metrics", "training", "diagnostics", "origin"):
        assert len(both.by_id(section).find("article")) == 2, section
    differing = [row.find("code")[0].text() for row in both.root.find("tr", "differs")]
    assert differing == ["seed"]
    # The same axes for both.
    charts_ = [
        each.find("g", "axis")[0].text() for each in both.by_id("training").find("svg", "plot")
    ]
    assert charts_[0] == charts_[1]


def test_a_comparison_of_other_runs_is_not_shown(tmp_path):
    folders = [reports.workdir_of_nothing(tmp_path / name) for name in "abc"]
    reports.write_comparison(tmp_path, folders[:2])
    runs = [read_run(each, f"r{place}") for place, each in enumerate(folders)]
    assert "compares other runs" in comparison_part(tmp_path, runs).missing
    assert comparison_part(tmp_path, runs[:2]).content
    assert "is missing" in comparison_part(tmp_path / "none", runs).missing
    (tmp_path / "compare.json").write_text('{"runs": 3}')
    assert "expected form" in comparison_part(tmp_path, runs[:2]).missing


# The command


def test_report_and_folders_are_flags_written_shortly():
    found = parse(["report", "a", "b/c", "--workdir=d"])
    assert (found.mode, found.options.workdirs, found.workdir) == ("report", "a,b/c", Path("d"))
    found = parse(["report", "a", "b"])
    assert found.workdir == Path("runs/compare")
    assert found == parse(["--mode=report", "--workdirs=a,b"])
    assert parse(["report"]) == parse(["--mode=report"])
    assert parse(["report"]).workdir == Path("runs/digits")
    for words in (["report", "a,b"], ["report", ""]):
        with pytest.raises(ValueError, match="there is no such folder"):
            parse(words)
    with pytest.raises(ValueError, match="'a' is not a flag"):
        parse(["--mode=report", "a"])


def test_the_command_writes_reports_of_one_run_and_of_several(tmp_path, capsys):
    folders = [reports.workdir_of_nothing(tmp_path / name) for name in "ab"]
    code, shown = run_command(capsys, "report", *folders, f"--workdir={tmp_path}/both")
    assert (code, shown) == (0, "")
    found = Page((tmp_path / "both" / "report.html").read_text())
    assert found.root.find("h1")[0].text() == "a, b"
    assert run_command(capsys, "report", folders[0])[0] == 0
    assert (folders[0] / "report.html").exists()
    assert run_command(capsys, "--mode=report", f"--workdir={folders[1]}")[0] == 0
    assert (folders[1] / "report.html").exists()


def test_a_folder_without_a_run_is_one_sentence(tmp_path, capsys):
    for words in (["report", tmp_path / "none"], ["--mode=report", f"--workdir={tmp_path}"]):
        code, shown = run_command(capsys, *words)
        assert (code, shown.count("\n")) == (2, 1)
        assert "holds no run, because it has no config.json" in shown
    assert not list(tmp_path.iterdir())


def test_training_and_sampling_write_report_and_provenance(tmp_path_factory, capsys):
    folder = finished_perceptron(tmp_path_factory)
    found = Page((folder / "report.html").read_text())
    assert found.by_id("samples").find("img", "frame")
    origin = json.loads((folder / "provenance.json").read_text())
    config = parse(shlex.split(origin["command"])[1:]).config
    assert dict(flatten(config)) == dict(flatten(perceptron()))
    assert origin["devices"] == "2 x cpu"
    assert {"python", "jax", "score_jax"} <= set(origin["versions"])

    words = (f"--workdir={folder}", "--mode=sample", "--number=4", "--name=four")
    assert run_command(capsys, *words, "--config.sampling.num_steps=2")[0] == 0
    again = json.loads((folder / "provenance.json").read_text())
    found = parse(shlex.split(again["samples"]["four"]["command"])[1:])
    assert (found.mode, found.options.number, found.options.name) == ("sample", 4, "four")
    assert found.config["sampling"]["num_steps"] == 2
    assert again["command"] == origin["command"]

    # Neither a checkpoint nor the devices are needed.
    for path in sorted((folder / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert run_command(capsys, "report", folder)[0] == 0
    assert "four.npz" in Page((folder / "report.html").read_text()).by_id("origin").text()
