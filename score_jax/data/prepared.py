"""Image data sets prepared by tensorflow-datasets, read without TensorFlow."""

import difflib
import errno
import os
import re
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np

from score_jax.data.dataset import Dataset, LazyImages
from score_jax.data.files import (
    AS_STORED,
    ImageTransform,
    UnreadableImageError,
    check_transform,
    decode_image,
    lazy_images,
)
from score_jax.data.retry import UnreachableError, check_reachable, retried
from score_jax.reading import first_line

SYSTEM_CALL = re.compile(r"\w+\(\) failed: ([^;]+)")
"""A call of the system that failed, and the reason, in a message of array_record."""


def tfds(
    name: str | None,
    path: str | os.PathLike | None = None,
    *,
    train_split: str = "train",
    held_out_split: str = "test",
    transform: ImageTransform = AS_STORED,
    labels: bool = True,
) -> Dataset:
    """A data set that `tfds build` has prepared in array_record files; nothing is downloaded.

    The data set needs an 8-bit feature `image`, as in mnist, cifar10, celeb_a or lsun/bedroom. Its
    feature `label` is used if it is a class that no example lacks. Images are decoded on access.

    Args:
        name: Name in tensorflow-datasets: name, name/config or name:version.
        path: Its `data_dir`; None for the usual one, $TFDS_DATA_DIR or ~/tensorflow_datasets.
        train_split: The training images: a split, or a part of one such as "train[:90%]".
        held_out_split: The held-out images, likewise.
        transform: Changes to each image when it is decoded. channels=None are those that the data
            set declares.
        labels: If True, read the labels. This reads every record once, without decoding images.

    Raises:
        FileNotFoundError: If the data set is not prepared; names the command that prepares it.
        ValueError: If there is no such data set or split, if it has no images, or if a transform
            is out of range.
        UnreadableImageError: As in `files.folder`; also if a label cannot be read.
        UnreachableError: As in `files.folder`.
    """
    import tensorflow_datasets  # slow to import

    check_transform(transform)
    builder = _open(name, os.path.expanduser(path) if path else None)
    features = _checked_features(name, builder)
    if transform.channels is None:
        grey = features["image"].shape[-1] == 1
        transform = transform._replace(channels=1 if grey else 3)

    # Decode images lazily, all of one shape.
    train_records = _Records(builder, train_split, "train_split", f"{name}: {train_split}")
    held_out_records = _Records(
        builder, held_out_split, "held_out_split", f"{name}: {held_out_split}"
    )
    encoded = tensorflow_datasets.decode.SkipDecoding()
    parse = _parser(features, "image", decoders={"image": encoded})

    def lazy(records: _Records, shape: tuple[int, int, int] | None) -> LazyImages:
        def decode(position: int) -> np.ndarray:
            return decode_image(parse(records.read(position)), transform)

        return lazy_images(decode, records.name, records.number, shape)

    train = lazy(train_records, None)
    held_out = lazy(held_out_records, train.shape[1:])
    data = Dataset(train, held_out, num_values=256)

    class_label = tensorflow_datasets.features.ClassLabel
    if not labels or not isinstance(features.get("label"), class_label):
        return data
    train_labels = _labels(features, train_records)
    held_out_labels = _labels(features, held_out_records)
    return _with_labels(data, train_labels, held_out_labels, features["label"].num_classes)


def _with_labels(
    data: Dataset, train_labels: np.ndarray, held_out_labels: np.ndarray, num_classes: int
) -> Dataset:
    """Adds labels to a data set, unless an example has the label -1, which stands for none."""
    if min(train_labels.min(), held_out_labels.min()) < 0:
        return data
    return data._replace(
        train_labels=train_labels, held_out_labels=held_out_labels, num_classes=num_classes
    )


def _checked_features(name: str | None, builder: Any) -> dict[str, Any]:
    """The features of a data set by name; raises ValueError if it has no 8-bit image."""
    import tensorflow_datasets

    features = builder.info.features
    if not isinstance(features, tensorflow_datasets.features.FeaturesDict):
        features = {}
    features = dict(features.items())
    image = features.get("image")
    if not isinstance(image, tensorflow_datasets.features.Image) or image.np_dtype != np.uint8:
        kinds = [f"{key} ({type(feature).__name__})" for key, feature in features.items()]
        raise ValueError(
            f"name={name!r} of tensorflow-datasets has no 8-bit image, but the features "
            f"{', '.join(kinds) or 'none'}: choose another data set"
        )
    return features


def _parser(features: dict[str, Any], feature: str, **options: Any) -> Callable[[bytes], Any]:
    """Returns a function from a serialized record to one feature of it."""
    import tensorflow_datasets

    # Parsing all features is slow: the forty attributes of celeb_a take as long as the image.
    only = tensorflow_datasets.features.FeaturesDict({feature: features[feature]})
    return lambda record: only.deserialize_example_np(record, **options)[feature]


def _labels(features: dict[str, Any], records: "_Records") -> np.ndarray:
    """The labels of all records, int32."""
    parse = _parser(features, "label")
    try:
        return np.array([parse(records.read(i)) for i in range(records.number)], np.int32)
    except (UnreachableError, MemoryError):
        raise
    except Exception as error:  # damaged files raise exceptions of any kind
        check_reachable(error, records.place)
        raise UnreadableImageError(
            f"{records.place} cannot be read ({error}): prepare it again"
        ) from error


def _open(name: str | None, data_dir: str | None) -> Any:
    """The builder of a prepared data set."""
    import tensorflow_datasets

    if not name:
        raise ValueError(f"name={name!r} must be that of a data set, such as 'cifar10'")
    usual = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    where = data_dir or usual
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir)
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        prepared = _prepared_in(os.path.expanduser(where))
        known = [*prepared, *tensorflow_datasets.list_builders(with_community_datasets=False)]
        near = dict.fromkeys(difflib.get_close_matches(name, known, 4, 0.5))
        raise ValueError(
            f"name={name!r} is not known to tensorflow-datasets: similar names are "
            f"{', '.join(near) or 'none'}; in {where} there is {', '.join(prepared) or 'nothing'}"
        ) from error
    except Exception as error:  # the kind depends on what is wrong with the name or the files
        reason = str(error).partition("\n")[0].rpartition('}": ')[2].strip()
        raise ValueError(
            f"name={name!r} cannot be opened by tensorflow-datasets in {where} "
            f"({reason}){_configs(name)}"
        ) from error

    formats = set()
    if builder.is_prepared():
        formats = {form.value for form in builder.info.available_file_formats()}
    if "array_record" not in formats:
        state = f"prepared as {', '.join(sorted(formats))} only" if formats else "not prepared"
        command = ["tfds", "build", name, "--file_format=array_record"]
        if data_dir is not None:
            command.append(f"--data_dir={data_dir}")
        place = f"{where} (path=None)" if data_dir is None else f"path={where}"
        raise FileNotFoundError(
            f"{name} is {state} in {place}: run, where TensorFlow is installed, "
            f"{shlex.join(command)}"
        )
    return builder


def _prepared_in(folder: str) -> list[str]:
    """Names of the data sets in a `data_dir`, sorted."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and entry.name != "downloads"
        )


def _configs(name: str) -> str:
    """A clause that lists the configs of a data set; empty if it has none."""
    import tensorflow_datasets

    base = name.partition("/")[0]
    if base not in tensorflow_datasets.list_builders(with_community_datasets=False):
        return ""
    builder_configs = tensorflow_datasets.builder_cls(base).builder_configs
    configs = [f"{base}/{config}" for config in builder_configs]
    return f": there is {', '.join(configs)}" if configs else ""


class _Records:
    """The serialized records of a split; reads are repeated when the system fails.

    Args:
        builder: The data set.
        split: The split.
        setting: Name of the argument that chose it.
        place: Name of the split in messages.
    """

    def __init__(self, builder: Any, split: str, setting: str, place: str):
        self.place = place
        self._open = lambda: _opened_records(builder, split, setting)
        self._records = self._open()
        self.number = len(self._records)
        self.read = retried(self._read, self.name)

    def name(self, position: int) -> str:
        """The name of a record in messages."""
        return f"{self.place}, record {position}"

    def _read(self, position: int) -> bytes:
        try:
            return self._records[position]
        except RuntimeError as error:
            # array_record raises no OSError, but names the call: "pread() failed: reason; ...".
            reason = SYSTEM_CALL.search(str(error))
            if reason is None:
                raise
            self._records = self._open()  # A file that was not opened is not tried again.
            raise OSError(_number_of(reason[1]), reason[1]) from error


def _number_of(reason: str) -> int:
    """The number of an error of the system."""
    return next((each for each in errno.errorcode if os.strerror(each) == reason), errno.EIO)


def _opened_records(builder: Any, split: str, setting: str) -> Any:
    import tensorflow_datasets

    raw = tensorflow_datasets.decode.DeserializeMethod.RAW_BYTES
    try:
        return builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
    except Exception as error:  # the kind depends on the split: unknown, empty, not to be parsed
        splits = builder.info.splits.items()
        there = [f"{key} ({value.num_examples} examples)" for key, value in splits]
        raise ValueError(
            f"{setting}={split!r} cannot be read ({first_line(error)}): there is "
            f"{', '.join(there)}, and parts like 'train[:90%]'"
        ) from error
