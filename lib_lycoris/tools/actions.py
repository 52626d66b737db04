"""What can be done with the files of the library: one record for each action, for page, routes, command line and README alike."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from lib_lycoris.errors import ConfigError
from lib_lycoris.files.sidecar import VERSIONS
from lib_lycoris.setting import Action, Section, setting
from lib_lycoris.tools.names import FORMATS

SHELVES = ("networks", "embeddings", "adapters")
DTYPES = ("fp16", "bf16", "fp32")
DEFAULT_ENERGY = 0.99

_NAME = "The file, as the list calls it."
_OUT = "Name of the new file, without ending; it lies beside the first one. Left out: made from the old name."
_DTYPE = "What numbers are stored as. Left out: as they are."
_SHELF = "The list that it stands in."


class _WithNeeded(Section):
    """Settings of which some may not be empty: `needed` says what to do then."""

    needed: typing.ClassVar[dict[str, str]] = {}

    def _check_together(self) -> None:
        for name, advice in self.needed.items():
            if not getattr(self, name).strip():
                raise ConfigError(f'{self.section}.{name} = "": {advice}')


@dataclass(frozen=True)
class _OfAFile(_WithNeeded):
    """Settings of an action on one file."""

    needed: typing.ClassVar[dict[str, str]] = {"name": "name a file"}
    name: str = setting("", _NAME)


@dataclass(frozen=True)
class _OnAShelf(_OfAFile):
    """The same of a file that may stand in any list."""

    shelf: str = setting("networks", _SHELF, choices=SHELVES)


@dataclass(frozen=True)
class MeasureSettings(_OfAFile):
    """Which network is measured."""

    section: typing.ClassVar[str] = "measure"


@dataclass(frozen=True)
class CompareSettings(_OfAFile):
    """Which two are compared."""

    section: typing.ClassVar[str] = "compare"
    needed: typing.ClassVar[dict[str, str]] = {**_OfAFile.needed, "other": "name a second network"}
    other: str = setting("", "The network to compare it with.")


@dataclass(frozen=True)
class RemarkSettings(_OnAShelf):
    """The user's own words on a file."""

    section: typing.ClassVar[str] = "remark"
    description: str | None = setting(None, "What it is, in your words; it stands on the WebUI's card.")
    sd_version: str | None = setting(None, "The base model that it is for.", choices=VERSIONS)
    activation_text: str | None = setting(None, "A click on the WebUI's card writes them behind the tag.")
    preferred_weight: float | None = setting(None, "Strength that a click on the WebUI's card writes; 0 means none.", minimum=-100, maximum=100)
    negative_text: str | None = setting(None, "A click on the WebUI's card writes it into the negative prompt.")
    notes: str | None = setting(None, "Whatever is worth keeping.")


@dataclass(frozen=True)
class PreviewSettings(_OnAShelf):
    """The picture that shows what a file does."""

    section: typing.ClassVar[str] = "preview"
    image: str = setting("", "The picture: the bytes of a PNG, JPEG, WebP or GIF in base64; on the command line a file's name.")


@dataclass(frozen=True)
class RenameSettings(_OnAShelf):
    """A file's new name."""

    section: typing.ClassVar[str] = "rename"
    new: str = setting("", "Its new name, without ending; remarks and previews move with it.")


@dataclass(frozen=True)
class ConvertSettings(_OfAFile):
    """A network in another program's form."""

    section: typing.ClassVar[str] = "convert"
    to: str = setting("kohya", "kohya: what WebUI and ComfyUI read; diffusers; peft: a folder; locon: every layer low-rank, exactly.", choices=FORMATS)
    out: str | None = setting(None, _OUT)


@dataclass(frozen=True)
class ResizeSettings(_OfAFile):
    """A network of smaller ranks."""

    section: typing.ClassVar[str] = "resize"
    rank: int | None = setting(None, "The most ranks of a layer.", minimum=1, maximum=4096)
    energy: float | None = setting(None, f"Instead of a rank: the share of each layer's squared singular values to keep. Both left out: {DEFAULT_ENERGY}.",
                                   minimum=0, maximum=1, above_minimum=True)
    dtype: str | None = setting(None, _DTYPE, choices=DTYPES)
    out: str | None = setting(None, _OUT)

    def _check_together(self) -> None:
        super()._check_together()
        if self.rank is not None and self.energy is not None:
            raise ConfigError(f"resize.energy = {self.energy:g}: resize.rank = {self.rank} is given too; leave one of them out")


@dataclass(frozen=True)
class MergeSettings(Section):
    """Several networks as one."""

    section: typing.ClassVar[str] = "merge"
    parts: tuple[str, ...] = setting((), "The networks with their strengths, NAME:0.8 or NAME:te=0.5,unet=1; at least one.")
    rank: int | None = setting(None, "The most ranks of a layer. Left out: all, which is exact.", minimum=1, maximum=4096)
    dtype: str | None = setting(None, _DTYPE, choices=DTYPES)
    out: str | None = setting(None, _OUT)

    def _check_together(self) -> None:
        if not self.parts:
            raise ConfigError("merge.parts = []: name at least one network, NAME:0.8")


@dataclass(frozen=True)
class DeleteSettings(_OnAShelf):
    """What goes to the trash."""

    section: typing.ClassVar[str] = "delete"


@dataclass(frozen=True)
class RestoreSettings(_WithNeeded):
    """What comes back from the trash."""

    section: typing.ClassVar[str] = "restore"
    needed: typing.ClassVar[dict[str, str]] = {"entry": "choose something in the trash"}
    entry: str = setting("", "What the trash calls it.")


@dataclass(frozen=True)
class EmptySettings(Section):
    """What is deleted for good."""

    section: typing.ClassVar[str] = "empty"
    entry: str | None = setting(None, "What the trash calls it. Left out: everything in the trash.")


ACTIONS = (
    Action("measure", "Measure", "How much a network changes each block, and how its change is spread over ranks.", MeasureSettings, long=True),
    Action("compare", "Compare", "Two networks beside each other: what they share, and how alike they are in each block.", CompareSettings, long=True),
    Action("remark", "Save remarks", "Changes your remarks on a file; what is left out stays.", RemarkSettings),
    Action("preview", "Set preview", "Makes a picture the file's preview; an older one goes to the trash.", PreviewSettings),
    Action("rename", "Rename", "Gives a file another name, with its remarks and previews.", RenameSettings),
    Action("convert", "Convert", "Writes a network in another program's form.", ConvertSettings, long=True),
    Action("resize", "Resize", "Writes a network with smaller ranks.", ResizeSettings, long=True),
    Action("merge", "Merge", "Writes one network that does what several do at their strengths.", MergeSettings, long=True),
    Action("delete", "Move to the trash", "Moves a file to the trash, with its remarks and previews.", DeleteSettings),
    Action("restore", "Restore", "Brings back what was deleted.", RestoreSettings),
    Action("empty", "Delete for good", "Deletes what lies in the trash for good.", EmptySettings),
)
