import numpy as np
from PIL import Image

from score_jax.cli import images


def test_grid_places_and_enlarges_every_image():
    x = np.linspace(0, 1, 7, dtype=np.float32)[:, None, None, None] * np.ones(
        (1, 8, 8, 1), np.float32
    )
    picture = images.grid(x, columns=3, pixels=240)
    factor, gap = 10, 2
    assert picture.shape == (3 * 82 + gap, 3 * 82 + gap, 3)
    assert picture.dtype == np.uint8
    for i in range(7):
        top, left = gap + i // 3 * 82, gap + i % 3 * 82
        np.testing.assert_array_equal(
            picture[top : top + 8 * factor, left : left + 8 * factor], min(int(256 * i / 6), 255)
        )
    assert (picture[:gap] == 255).all()


def test_values_outside_the_unit_interval_are_clipped():
    picture = images.grid(np.array([-3.0, 9.0, np.nan]).reshape(3, 1, 1, 1), columns=3, pixels=30)
    assert picture[5, [5, 16, 27], 0].tolist() == [0, 255, 0]


def test_three_channels_are_colours_and_of_others_the_first_is_drawn():
    picture = images.grid(np.array([1.0, 0.5, 0.0]).reshape(1, 1, 1, 3), columns=1, pixels=8)
    assert picture[4, 4].tolist() == [255, 128, 0]
    picture = images.grid(np.array([1.0, 0.5]).reshape(1, 1, 1, 2), columns=1, pixels=8)
    assert picture[4, 4].tolist() == [255, 255, 255]


def test_files_hold_what_was_given(tmp_path):
    frames = [np.full((16, 16, 3), value, np.uint8) for value in (0, 90, 200)]
    images.save_webp(tmp_path / "x.webp", frames)
    with Image.open(tmp_path / "x.webp") as file:
        assert file.n_frames == 3
        for i, frame in enumerate(frames):
            file.seek(i)
            np.testing.assert_array_equal(np.asarray(file.convert("RGB")), frame)
    images.save_png(tmp_path / "x.png", frames[1])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), frames[1])


def test_curves_are_drawn(tmp_path):
    curves = {"training": ([1, 2, 3], [5.0, 4.0, 3.0]), "held out": ([1, 3], [5.5, 3.5])}
    images.save_curves(tmp_path / "loss.png", curves, "step", "loss")
    picture = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB")).reshape(-1, 3)
    assert len(picture) > 100_000
    assert len(np.unique(picture, axis=0)) > 50  # two colors, their shades, and text


def test_points_of_one_and_of_many_coordinates_are_drawn():
    for points in (np.zeros((5, 1), np.float32), np.ones((5, 3), np.float32)):
        picture = images.scatter(points, pixels=240, extent=2.0)
        assert picture.shape == (240, 240, 3)
        assert picture.std() > 1
