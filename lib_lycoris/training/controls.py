"""The control pictures of an adapter's training: files beside the pictures or in a folder of their own, found and read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import DatasetError, shown
from .config import DataSettings
from .masks import same_shape, turned_with
from .pictures import PICTURES, measure, open_image, read_bytes, to_rgb

if TYPE_CHECKING:
    from .dataset import Dataset, Picture


def with_controls(dataset: Dataset, settings: DataSettings) -> Dataset:
    """The dataset whose pictures know their control pictures; where a preprocessor makes them there is nothing to find.

    Raises:
        DatasetError: control pictures are missing, can't be read, or have another shape than their picture.
    """
    if settings.preprocessor is not None:
        return dataset
    found = [(picture, find_control(picture.path, picture.subset.control_folder, picture.subset.control_suffix)) for picture in dataset.pictures]
    _check_all_there([picture for picture, control in found if control is None], len(found))
    pictures = tuple(replace(picture, control=control) for picture, control in found)
    for picture in pictures:
        _check_shape(picture)
    return replace(dataset, pictures=pictures, problems=(*dataset.problems, *_odd(pictures)))


def find_control(picture: Path, control_folder: str | None = None, suffix: str = ".cond") -> Path | None:
    """The control picture of a picture: of its name in that folder, or where none is named NAME.cond.* beside it; None where it has none."""
    for folder, stem in _places(picture, control_folder, suffix):
        for ending in (picture.suffix, *PICTURES):
            path = folder / f"{stem}{ending}"
            if path.is_file() and path != picture:
                return path
    return None


def is_control(path: Path, names: Iterable[str], suffix: str) -> bool:
    """Whether a file is the control picture, by its name, of one of the pictures with these names (without endings)."""
    return path.stem.endswith(suffix) and path.stem.removesuffix(suffix) in names


def read_control(path: Path, size: tuple[int, int], turned: int = 1) -> Image.Image:
    """A control picture in 8-bit RGB, transparency on black; it lies as its picture does after EXIF's turn, and has its shape, not always its size.

    Args:
        size: of the picture, (width, height), after the turn.
        turned: the picture's own EXIF orientation; a control picture that lies as the picture's bytes do, and says nothing itself, is turned with it.

    Raises:
        DatasetError: it can't be read, or has another shape than its picture.
    """
    return turned_with(to_rgb(open_image(path), "black"), path, size, turned, "control picture")


def _places(picture: Path, control_folder: str | None, suffix: str) -> list[tuple[Path, str]]:
    """(folder, name without ending) where a control picture may be, the likeliest first."""
    if control_folder is None:
        return [(picture.parent, picture.stem + suffix)]
    named, inside = Path(control_folder).expanduser(), picture.parent / control_folder
    folders = [inside, named / picture.parent.name, named]
    return [(folder, stem) for folder in folders for stem in (picture.stem, picture.stem + suffix)]


def _check_all_there(missing: Sequence[Picture], count: int) -> None:
    if not missing:
        return
    names = ", ".join(shown(picture.path, 200) for picture in missing[:3]) + (", …" if len(missing) > 3 else "")
    first, folder = missing[0], missing[0].subset.control_folder
    where = f"{first.path.stem}{first.subset.control_suffix}.png beside it" if folder is None else f"a picture of that name in {folder}"
    raise DatasetError(f"{len(missing)} of {count} pictures have no control picture: {names}; put {where}, or name a data.preprocessor that makes them")


def _check_shape(picture: Picture) -> None:
    """By the headers alone; what lies as its picture's bytes do is turned later."""
    size, wanted = measure(picture.control, read_bytes(picture.control)), picture.size
    if not same_shape(size, wanted) and not same_shape((size[1], size[0]), wanted):
        raise DatasetError(f"control picture {shown(picture.control, 200)} has {size[0]}×{size[1]} pixels, its picture {wanted[0]}×{wanted[1]}: make it of the "
                           "same shape")


def _odd(pictures: Sequence[Picture]) -> list[str]:
    """What may surprise about control pictures."""
    same = [picture for picture in pictures if picture.control is not None and picture.control.read_bytes() == picture.path.read_bytes()]
    return [f"{len(same)} of {len(pictures)} control pictures are the picture itself, byte for byte, as {same[0].control}"] if same else []
