"""Lists the images in a folder or in zip archives, and groups them by split and class.

The layout is one of

    split/class/image.png      two splits with classes
    split/image.png            two splits without classes
    class/image.png            no splits: one tenth of each class is held out
    image.png                  neither: one tenth of all images is held out
"""

import contextlib
import functools
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from score_jax.data.dataset import split_examples
from score_jax.reading import listed, matching_files, within

LAYOUT = "split/class/image.png (.jpg, .jpeg), with or without the split and the class"
NO_CLASS = ""  # stands for the class of images that have none

Groups = dict[str, list[Any]]
"""class -> handles of its images, both in the order of their names."""


class Entry(NamedTuple):
    """A file or folder that was found.

    Attributes:
        parts: Components of its path below the root; the last one is "" for a folder.
        handle: Value by which the file is read.
    """

    parts: tuple[str, ...]
    handle: Any


class PassedOver:
    """Counts what is not read, by reason, to say so in one sentence."""

    def __init__(self):
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Adds one name for a reason, such as `HIDDEN`."""
        self._names.setdefault(reason, []).append(name)

    def add_others(self, entries: Iterable["Entry"], splits: Sequence[str]) -> None:
        """Adds the files that are no images, and what lies beside the splits."""
        entries = list(entries)
        tops = {entry.parts[0] for entry in entries if len(entry.parts) > 1}
        inside = entries
        if tops & {*splits}:
            inside = [entry for entry in entries if entry.parts[0] in splits]
            for name in sorted({entry.parts[0] for entry in entries} - {*splits}):
                self.add(BESIDE, name)
        for entry in inside:
            if entry.parts[-1] and not is_image(entry.parts[-1]):
                self.add(FOREIGN, entry.parts[-1])

    @contextlib.contextmanager
    def explaining(self, root: str) -> Iterator[None]:
        """Adds the sentence to an error, as what was passed over can be its reason."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            sentence = self.sentence(root)
            if sentence is None:
                raise
            raise type(error)(f"{error}; {sentence}") from error

    def sentence(self, root: str) -> str | None:
        """One sentence with counts and some names; None if nothing was passed over."""
        if not self._names:
            return None
        counts = [f"{len(names)} {why} ({_listed(names)})" for why, names in self._names.items()]
        return f"{root}: passed over {', '.join(counts)}"


HIDDEN = "hidden or an archiver's own"
FOREIGN = "not .png, .jpg or .jpeg"
BESIDE = "beside the splits"
OUTSIDE = "with a path that leaves the archive"
TWICE = "with a name that occurs again"


class Layout(NamedTuple):
    """The images of a data set by split and class.

    Attributes:
        train: Handles of the training images by class.
        held_out: Handles of the held-out images, with the same classes.
        classes: Names of the classes, sorted; None if the images have none.
        note: One sentence on how the images were split, if they came without splits; else None.
    """

    train: Groups
    held_out: Groups
    classes: tuple[str, ...] | None
    note: str | None


def list_folder(root: str, splits: Sequence[str], passed: PassedOver) -> list[Entry]:
    """Files and folders below `root` that a layout can hold; their handles are paths.

    Args:
        root: The folder.
        splits: Names of the splits. If one of them exists, only the splits are searched.
        passed: Counts the hidden ones.
    """
    tops = {entry.parts[0] for entry in _walk(root, 1, PassedOver()) if len(entry.parts) > 1}
    existing = tops & {*splits}
    entries = list(_walk(root, 1 if existing else 2, passed))
    for split in sorted(existing):
        entries += _walk(os.path.join(root, split), 2, passed, (split,))
    return entries


def open_archives(path: str | os.PathLike | None) -> list[zipfile.ZipFile]:
    """Opens the zip archives that a path, a list of paths or a pattern names, each once.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is not a zip archive.
    """
    archives = []
    for file in _archive_files(path):
        try:
            archives.append(zipfile.ZipFile(file))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"{file} cannot be opened as a zip archive ({error}): copy or download it again"
            ) from error
    return archives


def list_archive(
    archive: zipfile.ZipFile, number: int, splits: Sequence[str], passed: PassedOver
) -> list[Entry]:
    """Entries of an archive, without the one folder that may enclose all of them.

    Args:
        archive: The archive.
        number: Number of the archive; handles are (number, name of the member).
        splits: Names of the splits; a split is not taken for the enclosing folder.
        passed: Counts the hidden members and those of `members`.
    """
    entries = [Entry(parts, (number, name)) for parts, name in members(archive, passed)]
    tops = {entry.parts[0] for entry in entries if len(entry.parts) > 1}
    if len(tops) != 1 or tops & set(splits):
        return entries

    # All folders lie in one: it encloses the data, unless it is a class among bare images.
    inside = [
        Entry(entry.parts[1:], entry.handle)
        for entry in entries
        if len(entry.parts) > 1 and entry.parts != (*tops, "")
    ]
    has_bare_images = any(len(entry.parts) == 1 and is_image(entry.parts[0]) for entry in entries)
    has_split = any(len(entry.parts) > 1 and entry.parts[0] in splits for entry in inside)
    return entries if has_bare_images and not has_split else inside


def arrange(
    entries: Sequence[Entry], place: Callable[..., str], train_split: str, held_out_split: str
) -> Layout:
    """Groups entries by split and class.

    If neither split is among the entries, one tenth of the images of each class is held out, as
    in `dataset.split_examples`.

    Args:
        entries: Everything below the root, or at least all that a layout can hold.
        place: (*parts) -> name of an entry in messages; without arguments, that of the root.
        train_split: Name of the folder of training images.
        held_out_split: Name of the folder of held-out images.

    Raises:
        FileNotFoundError: If one split is missing, or if both are and the root is not laid out
            without splits either.
        ValueError: If the layout of a split is another one, or the splits have different classes.
    """
    folders = {entry.parts[0] for entry in entries if len(entry.parts) > 1}
    if train_split in folders or held_out_split in folders:
        return _two_splits(entries, place, train_split, held_out_split)
    return _one_split(entries, place, train_split, held_out_split)


def members(archive: zipfile.ZipFile, passed: PassedOver) -> Iterator[tuple[tuple[str, ...], str]]:
    """The members of an archive as pairs of path and name, each path once.

    Passes over hidden members, absolute paths and those with `..`. Of members with the same path
    the last one counts, as if the archive were unpacked.
    """
    found: dict[tuple[str, ...], str] = {}
    hidden: dict[str, None] = {}
    for name in archive.namelist():
        # Some programs on Windows separate folders by backslashes; others begin with `./`.
        *folders, last = name.replace("\\", "/").split("/")
        parts = (*(part for part in folders if part not in ("", ".")), last)
        if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or ".." in parts:
            passed.add(OUTSIDE, name)
        elif any(is_hidden(part) for part in parts):
            # The outermost hidden folder stands for its content.
            first = next(i for i, part in enumerate(parts) if is_hidden(part))
            hidden["/".join(parts[: first + 1])] = None
        else:
            if parts in found and last:
                passed.add(TWICE, "/".join(parts))
            found[parts] = name
    for name in hidden:
        passed.add(HIDDEN, name)
    yield from found.items()


def is_hidden(name: str) -> bool:
    """True for a file or folder that begins with a dot or belongs to the archiver."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """True for a file name with the suffix of an image."""
    return name.lower().endswith((".png", ".jpg", ".jpeg"))


def _walk(
    path: str, depth: int, passed: PassedOver, above: tuple[str, ...] = ()
) -> Iterator[Entry]:
    """Entries of a folder and, for depth > 1, of the folders in it; hidden ones are skipped."""
    with os.scandir(path) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                passed.add(HIDDEN, entry.name)
                continue
            parts = (*above, entry.name)
            if not entry.is_dir():
                yield Entry(parts, entry.path)
                continue
            yield Entry((*parts, ""), entry.path)
            if depth > 1:
                yield from _walk(entry.path, depth - 1, passed, parts)


def _archive_files(path: str | os.PathLike | None) -> list[str]:
    """Files that a path, a list of paths or a pattern names, each once."""
    text = os.fspath(path or "")
    found = []
    for part in listed(text, matching_files) or [""]:
        files = matching_files(part)
        if not files:
            raise FileNotFoundError(
                f"path={path!r}: there is no file {part!r}{within(part)}; path must name zip "
                "archives, separated by commas or as a pattern with *"
            )
        found += files
    return list(dict.fromkeys(found))


def _two_splits(
    entries: Sequence[Entry], place: Callable[..., str], train_split: str, held_out_split: str
) -> Layout:
    """The layout of a root that has at least one of the two splits."""
    train_entries = _below(entries, place, "train_split", train_split)
    held_out_entries = _below(entries, place, "held_out_split", held_out_split)
    train = _by_class(train_entries, functools.partial(place, train_split))
    held_out = _by_class(held_out_entries, functools.partial(place, held_out_split))
    _check_has_classes(train, held_out, place(train_split), held_out_split)
    _check_has_classes(held_out, train, place(held_out_split), train_split)
    return Layout(train, held_out, _classes(train), None)


def _one_split(
    entries: Sequence[Entry], place: Callable[..., str], train_split: str, held_out_split: str
) -> Layout:
    """The layout of a root without splits, of whose images one tenth is held out."""
    try:
        images = _by_class(entries, place)
    except ValueError as error:
        folders = {entry.parts[0] for entry in entries if len(entry.parts) > 1}
        only = f", only {_listed(folders)}" if folders else ""
        raise FileNotFoundError(
            f"train_split={train_split!r} and held_out_split={held_out_split!r}: there are no "
            f"such folders in {place()}{only}, and without them {error}"
        ) from error

    # Hold out images of every class, so that both splits have all classes.
    train, held_out = {}, {}
    for label, handles in images.items():
        name = place(label) if label != NO_CLASS else place()
        train_positions, held_out_positions = split_examples(len(handles), name)
        train[label] = [handles[i] for i in train_positions]
        held_out[label] = [handles[i] for i in held_out_positions]

    classes = _classes(images)
    num_train = sum(map(len, train.values()))
    num_held_out = sum(map(len, held_out.values()))
    note = (
        f"{place()} has no folders {train_split} and {held_out_split}: {num_train} images to "
        f"train on, {num_held_out} held out, chosen by a fixed permutation"
    )
    if classes is not None:
        note += f" in each class ({_listed(classes)})"
    return Layout(train, held_out, classes, note)


def _below(
    entries: Sequence[Entry], place: Callable[..., str], setting: str, split: str
) -> list[Entry]:
    """The entries of one split, with paths relative to it."""
    inside = [
        Entry(entry.parts[1:], entry.handle)
        for entry in entries
        if entry.parts[0] == split and len(entry.parts) > 1
    ]
    if not inside:
        folders = {entry.parts[0] for entry in entries if len(entry.parts) > 1}
        raise FileNotFoundError(
            f"{setting}={split!r}: there is no folder {place(split)}, only {_listed(folders)}"
        )
    return inside


def _by_class(entries: Sequence[Entry], place: Callable[..., str]) -> Groups:
    """The images of one split, or of a root without splits, by class."""
    deep = [entry.parts for entry in entries if len(entry.parts) > 2]
    if deep:
        raise ValueError(f"{place(*min(deep))} lies too deep: the layout is {LAYOUT}")

    # Images outside of folders, and the content of every folder.
    bare = [entry for entry in entries if len(entry.parts) == 1 and is_image(entry.parts[0])]
    folders: dict[str, list[Entry]] = {}
    for entry in entries:
        if len(entry.parts) == 2 and entry.parts[0]:
            files = folders.setdefault(entry.parts[0], [])
            if entry.parts[1]:
                files.append(entry)
    if bare and folders:
        raise ValueError(
            f"{place()} holds both images, like {bare[0].parts[0]}, and folders, like "
            f"{min(folders)}: put every image into the folder of its class, or all of them "
            "outside of any"
        )

    # The images among them, sorted.
    if not folders:
        return {NO_CLASS: _images(bare, entries, place())}
    return {name: _images(files, files, place(name)) for name, files in sorted(folders.items())}


def _images(files: Sequence[Entry], there: Sequence[Entry], place: str) -> list[Any]:
    """Handles of the images among `files`, sorted by name; `there` is listed if there are none."""
    found = sorted(
        (entry for entry in files if is_image(entry.parts[-1])), key=lambda entry: entry.parts
    )
    if not found:
        names = {entry.parts[-1] for entry in there} - {""}
        raise ValueError(
            f"{place} holds no .png, .jpg or .jpeg, but {_listed(names)}: add images, or remove "
            "the folder"
        )
    return [entry.handle for entry in found]


def _check_has_classes(images: Groups, others: Groups, place: str, other_split: str) -> None:
    """Raises ValueError if `images` lacks a class of `others`."""
    missing = [label for label in others if label != NO_CLASS and label not in images]
    if not missing:
        return
    if NO_CLASS in images:
        lacked = "classes"
    elif len(missing) == 1:
        lacked = f"the class {missing[0]}"
    else:
        lacked = f"the classes {_listed(missing)}"
    raise ValueError(
        f"{place} lacks {lacked}, which {other_split} has: both splits must have the same "
        "classes, or none"
    )


def _classes(images: Groups) -> tuple[str, ...] | None:
    return None if NO_CLASS in images else tuple(images)


def _listed(names: Iterable[str]) -> str:
    """The first names, separated by commas."""
    names = sorted(names)
    if not names:
        return "nothing"
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
