"""Image data sets that tensorflow-datasets has prepared, read without TensorFlow."""

import difflib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from score_jax.data.dataset import Dataset
from score_jax.data.files import ImageTransform, UnreadableImageError, decode_image, lazy_images


def tfds(
    name: str, data_dir: str, *, train_split: str, held_out_split: str, transform: ImageTransform, labels: bool = True
) -> Dataset:
    """A data set that `tfds build` has prepared in array_record files; nothing is downloaded. Decoded when asked for.

    Any data set will do that has a feature `image` of 8 bits: mnist, cifar10, svhn_cropped, celeb_a, lsun/bedroom, ... If it has a
    feature `label` that is a class, and no example lacks it, that is the label.

    Args:
        name: As tensorflow-datasets knows it: name, name/config or name:version.
        data_dir: Where it was prepared; "" for the usual place, ~/tensorflow_datasets or $TFDS_DATA_DIR.
        train_split: The training images: a split, or part of one, like "train[:90%]".
        held_out_split: The same of the held-out images.
        transform: What is done to each image. Without `channels`, they are the data set's.
        labels: Whether to read the labels, for which every record is read once, undecoded.

    Raises:
        FileNotFoundError: If it is not prepared, with the command that does it.
        ValueError: If there is no such data set or split, with those there are, or if it has no images.
        UnreadableImageError: As in `files.folder`; from here also if a label cannot be read.
    """
    import tensorflow_datasets  # here, since it takes long

    builder = _open(name, data_dir)
    features = builder.info.features
    features = dict(features.items()) if isinstance(features, tensorflow_datasets.features.FeaturesDict) else {}
    image = features.get("image")
    if not isinstance(image, tensorflow_datasets.features.Image) or image.np_dtype != np.uint8:
        there = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items()) or "none"
        raise ValueError(
            f"{name!r} of tensorflow-datasets has no image of 8 bits, but the features {there}: choose another data set"
        )
    transform = transform._replace(channels=transform.channels or (1 if image.shape[-1] == 1 else 3))

    def parser(feature: str, **options: Any) -> Callable[[bytes], Any]:
        # Only what is needed: to parse the forty attributes of celeb_a takes as long as to decode the image.
        only = tensorflow_datasets.features.FeaturesDict({feature: features[feature]})
        return lambda record: only.deserialize_example_np(record, **options)[feature]

    encoded = parser("image", decoders={"image": tensorflow_datasets.decode.SkipDecoding()})
    splits = {"config.data.train_split": train_split, "config.data.held_out_split": held_out_split}
    sources = [_records(builder, split, setting) for setting, split in splits.items()]

    def lazy(source: Any, split: str, event: tuple[int, int, int] | None):
        return lazy_images(
            lambda i: decode_image(encoded(source[i]), transform), lambda i: f"{name}: {split}, record {i}", len(source), event
        )

    def classes(source: Any, split: str) -> np.ndarray:
        try:
            return np.array(list(map(parser("label"), source)), np.int32)
        except Exception as error:  # damaged files
            raise UnreadableImageError(f"{name}: {split} cannot be read ({error}): prepare it again") from error

    train = lazy(sources[0], train_split, None)
    held_out = lazy(sources[1], held_out_split, train.shape[1:])
    if labels and isinstance(features.get("label"), tensorflow_datasets.features.ClassLabel):
        numbers = [classes(source, split) for source, split in zip(sources, splits.values(), strict=True)]
        if min(array.min() for array in numbers) >= 0:
            return Dataset(train, held_out, 256, *numbers, num_classes=features["label"].num_classes)
    return Dataset(train, held_out, 256)


def _open(name: str, data_dir: str) -> Any:
    """The builder of a data set that is prepared."""
    import tensorflow_datasets

    where = data_dir or os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir or None)
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        folder = os.path.expanduser(where)
        entries = os.scandir(folder) if os.path.isdir(folder) else []
        prepared = sorted(entry.name for entry in entries if entry.is_dir() and entry.name != "downloads")
        known = [*prepared, *tensorflow_datasets.list_builders(with_community_datasets=False)]
        near = ", ".join(dict.fromkeys(difflib.get_close_matches(name, known, 4, 0.5))) or "none"
        raise ValueError(
            f"config.data.name={name!r} is not known to tensorflow-datasets: names like it are {near}; "
            f"in {where} there is {', '.join(prepared) or 'nothing'}"
        ) from error
    except Exception as error:  # of many kinds, for what the name or the files of the data set may say
        reason = str(error).partition("\n")[0].rpartition('}": ')[2].strip()
        raise ValueError(
            f"config.data.name={name!r} cannot be opened by tensorflow-datasets in {where} ({reason}){_configs(name)}"
        ) from error
    formats = {form.value for form in builder.info.available_file_formats()} if builder.is_prepared() else set()
    if "array_record" not in formats:
        what = f"prepared as {', '.join(sorted(formats))} only" if formats else "not prepared"
        option = f" --data_dir={data_dir}" if data_dir else ""
        raise FileNotFoundError(
            f"{name} is {what} in {where}: run, where TensorFlow is installed, tfds build {name} --file_format=array_record{option}"
        )
    return builder


def _configs(name: str) -> str:
    """The names that a data set comes under, if there is more than one."""
    import tensorflow_datasets

    first = name.partition("/")[0]
    if first not in tensorflow_datasets.list_builders(with_community_datasets=False):
        return ""
    configs = [f"{first}/{config}" for config in tensorflow_datasets.builder_cls(first).builder_configs]
    return f": there is {', '.join(configs)}" if configs else ""


def _records(builder: Any, split: str, setting: str) -> Any:
    """The serialized records of a split."""
    import tensorflow_datasets

    raw = tensorflow_datasets.decode.DeserializeMethod.RAW_BYTES
    try:
        return builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
    except Exception as error:  # unknown splits, slices that cannot be parsed, empty ones: each has its own kind
        there = ", ".join(f"{key} ({value.num_examples} examples)" for key, value in builder.info.splits.items())
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{setting}={split!r} cannot be read ({reason}): there is {there}, and parts like 'train[:90%]'"
        ) from error
