"""Masks of known pixels: named sides and image files, scaled with the images they belong to."""

import io
from pathlib import Path

import numpy as np

from score_jax.cli import images
from score_jax.data.files import AS_STORED, FORMATS, ImageTransform, decode_image, read_image
from score_jax.reading import expanded, read_regular

SIDES = {
    "right": (slice(None), slice(1, None)),
    "left": (slice(None), slice(0, 1)),
    "bottom": (slice(1, None), slice(None)),
    "top": (slice(0, 1), slice(None)),
}
"""Name of a side -> the quarters of the image [rows, columns] that it covers."""
MASKS = (*SIDES, "center")


def read_mask(
    mask: str,
    shape: tuple[int, ...],
    transform: ImageTransform = AS_STORED,
    flag: str = "--mask=",
) -> np.ndarray:
    """Reads which pixels are known, bool of shape `shape`.

    Args:
        mask: The side that is missing (right, left, top, bottom), "center" for the middle half, or
            an image file, as in `read_mask_file`.
        shape: Shape of the network's images, [height, width, channels].
        transform: Crop and size of the images, for a file of another size than the network's.
        flag: What precedes the mask in messages.

    Raises:
        ValueError: If the mask is none of these, does not fit, or leaves everything known or
            missing.
        FileNotFoundError: If there is no such file.
    """
    height, width, _ = shape
    if mask in SIDES:
        quarters = np.zeros((2, 2), bool)
        quarters[SIDES[mask]] = True
        row_half = np.arange(height) * 2 // height
        column_half = np.arange(width) * 2 // width
        known = ~quarters[row_half][:, column_half]
    elif mask == "center":
        known = np.ones((height, width), bool)
        known[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    else:
        stored = read_mask_file(mask, flag)
        known = stored
        if stored.shape != (height, width):
            known = _scaled(mask, stored, transform, flag)
        if known.shape != (height, width):
            raise ValueError(
                f"{flag}{mask} is {stored.shape[0]}x{stored.shape[1]}, but the images are "
                f"{height}x{width}"
            )
    if known.all() or not known.any():
        left = "nothing to complete" if known.all() else "nothing known"
        raise ValueError(f"{flag}{mask} leaves {left}")
    return np.broadcast_to(known[..., None], shape).copy()


def read_mask_file(mask: str, flag: str = "--mask=") -> np.ndarray:
    """Known pixels of a mask file, bool [height, width].

    White pixels are known and black ones are missing; grey ones belong to the nearer of the two.
    In a file without values above 1, those of 1 are known. Transparent pixels are missing, unless
    everything opaque is black: then the opaque pixels cover what is missing.

    Raises:
        ValueError: If the file is not an image.
        FileNotFoundError: If there is no such file.
    """
    path = expanded(mask)
    if not path.is_file():
        raise FileNotFoundError(f"{flag}{mask} is neither a file nor one of {', '.join(MASKS)}")
    values = read_image(path, ImageTransform(channels=1))[..., 0]
    opaque = _opaque(path)
    if opaque is None or opaque.all():
        return values > 0 if values.max() <= 1 else values > 127
    painted = values[opaque]
    if painted.size and painted.max() <= 1 and painted.min() == 0:
        return ~opaque if painted.max() == 0 else opaque & (values > 0)
    # A mask in black and white, or a picture of which a part was erased.
    is_mask = np.isin(painted, (0, 255)).all()
    return opaque & (values > 127) if is_mask else opaque


def _opaque(path: Path) -> np.ndarray | None:
    """Pixels of an image file that are more opaque than transparent; None without transparency."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(read_regular(path)), formats=FORMATS) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return None
        alpha = ImageOps.exif_transpose(image.convert("RGBA")).getchannel("A")
    return np.asarray(alpha) > 127


def _scaled(mask: str, known: np.ndarray, transform: ImageTransform, flag: str) -> np.ndarray:
    """A mask cropped and resized as the images are: known where most of a pixel is known."""
    try:
        return _prepared(known[..., None] * np.uint8(255), transform)[..., 0] > 127
    except ValueError as error:
        raise ValueError(f"{flag}{mask} does not fit the images: {error}") from None


def scale_known(pixels: np.ndarray, known: np.ndarray, transform: ImageTransform) -> np.ndarray:
    """Crops and resizes an image so that missing pixels do not enter the known ones.

    Args:
        pixels: uint8 [height, width, channels].
        known: bool [height, width].
        transform: Crop and size.

    Returns:
        uint8 [size, size, channels]. Pixels without any known part are those of the whole image.
    """
    whole = _prepared(pixels, transform)
    part = _prepared(np.where(known[..., None], pixels, 0).astype(np.uint8), transform)
    weight = _prepared(known[..., None] * np.uint8(255), transform) / 255.0
    mean = np.divide(part, weight, out=whole.astype(np.float64), where=weight >= 0.5)
    return np.clip(np.rint(mean), 0, 255).astype(np.uint8)


def _prepared(pixels: np.ndarray, transform: ImageTransform) -> np.ndarray:
    """An image after a transform's crop and resizing, uint8 [height, width, channels]."""
    content = images.encoded(pixels, format="PNG")
    return decode_image(content, transform._replace(channels=pixels.shape[2]))
