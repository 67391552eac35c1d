"""Image data sets prepared by tensorflow-datasets, read without TensorFlow."""

import difflib
import os
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
    """
    import tensorflow_datasets  # slow to import

    check_transform(transform)
    builder = _open(name, os.path.expanduser(path) if path else None)
    features = _checked_features(name, builder)
    if transform.channels is None:
        grey = features["image"].shape[-1] == 1
        transform = transform._replace(channels=1 if grey else 3)

    # Decode images lazily, all of one shape.
    train_records = _records(builder, train_split, "train_split")
    held_out_records = _records(builder, held_out_split, "held_out_split")
    encoded = tensorflow_datasets.decode.SkipDecoding()
    parse = _parser(features, "image", decoders={"image": encoded})

    def lazy(records: Any, split: str, shape: tuple[int, int, int] | None) -> LazyImages:
        def decode(position: int) -> np.ndarray:
            return decode_image(parse(records[position]), transform)

        return lazy_images(decode, lambda i: f"{name}: {split}, record {i}", len(records), shape)

    train = lazy(train_records, train_split, None)
    held_out = lazy(held_out_records, held_out_split, train.shape[1:])
    data = Dataset(train, held_out, num_values=256)

    class_label = tensorflow_datasets.features.ClassLabel
    if not labels or not isinstance(features.get("label"), class_label):
        return data
    train_labels = _labels(features, train_records, f"{name}: {train_split}")
    held_out_labels = _labels(features, held_out_records, f"{name}: {held_out_split}")
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


def _checked_features(name: str, builder: Any) -> dict[str, Any]:
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


def _labels(features: dict[str, Any], records: Any, where: str) -> np.ndarray:
    """The labels of all records, int32."""
    parse = _parser(features, "label")
    try:
        return np.array([parse(record) for record in records], np.int32)
    except Exception as error:  # damaged files raise exceptions of any kind
        raise UnreadableImageError(
            f"{where} cannot be read ({error}): prepare it again"
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
        raise FileNotFoundError(
            f"{name} is {state} in {where}: run, where TensorFlow is installed, "
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


def _records(builder: Any, split: str, setting: str) -> Any:
    """The serialized records of a split."""
    import tensorflow_datasets

    raw = tensorflow_datasets.decode.DeserializeMethod.RAW_BYTES
    try:
        return builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
    except Exception as error:  # the kind depends on the split: unknown, empty, not to be parsed
        splits = builder.info.splits.items()
        there = [f"{key} ({value.num_examples} examples)" for key, value in splits]
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{setting}={split!r} cannot be read ({reason}): there is {', '.join(there)}, and "
            "parts like 'train[:90%]'"
        ) from error
