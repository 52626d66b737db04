"""What the host calls of the adapters' accordion: it draws it, and hands a picture's units on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modules import scripts
from modules.infotext_utils import PasteField

from lib_lycoris.errors import LycoError
from lib_lycoris.prompt.unit import Unit, parse_unit
from lib_lycoris.prompt.unit_values import FIELDS, INFOTEXT, PICTURES, fuser_value, told_fuser, unit_values

from .adapter_axes import changed
from .adapter_work import AdapterWork
from .adapters import Adapters

TITLE = "Lyco adapters"
_FILES = ("pictures",)
"""What no field of another tab takes over: gradio 3.41 gives files in another form than it takes them."""


def make_script(adapters: Adapters, draw: Callable[[str, Sequence[Any]], Any], show: Callable[[Unit], Mapping[str, Any]]) -> type[scripts.Script]:
    """The class that the host makes a script of for each of its tabs.

    Args:
        adapters: what there is.
        draw: draws the accordion of a tab ("txt2img" or "img2img"; the host's components for width and height), gives it with `units`, `rest`,
            `fuser`, `controls`.
        show: gives for each control what it shows of a unit, for pasted infotexts.
    """

    class LycoAdapters(scripts.Script):
        """The accordion, and its units in the host's life of a picture."""

        def __init__(self) -> None:
            self._size: dict[str, Any] = {}
            for tab in ("txt2img", "img2img"):
                for side in ("width", "height"):
                    self.on_after_component(lambda found, name=f"{tab}_{side}": self._size.__setitem__(name, found.component), elem_id=f"{tab}_{side}")

        def title(self) -> str:
            """The name under which the API has it: alwayson_scripts {"lyco adapters": {"args": [{"adapter": …}]}}."""
            return TITLE

        def show(self, is_img2img: bool) -> Any:
            """Always on."""
            return scripts.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[Any]:
            """The controls. The API calls this twice more for their defaults, so nothing but components is made."""
            tab = "img2img" if is_img2img else "txt2img"
            size = [self._size[name] for name in (f"{tab}_width", f"{tab}_height") if name in self._size]
            drawn = draw(tab, size if len(size) == 2 else [])
            self.infotext_fields = [
                PasteField(component, _Pasted(number, name, show))
                for number, (unit, rest) in enumerate(zip(drawn.units, drawn.rest, strict=True))
                for name, component in {**unit, "colours": rest["colours"], "told": rest["told"]}.items() if name not in _FILES
            ]
            self.infotext_fields.append(PasteField(drawn.fuser, told_fuser))
            # what "Send to img2img" hands over as it stands: the host looks for these among the fields of both tabs
            units = [_Pasted(number, name, show) for number in range(len(drawn.units)) for name in FIELDS if name not in _FILES]
            self.paste_field_names = [*units, told_fuser]
            return drawn.controls

        def process(self, p: Any, *values: Any) -> None:
            """Reads the units; a picture that has some gets a sampling of its own that puts them on and takes them off."""
            AdapterWork.begin(p, adapters, changed(p, unit_values(values)), fuser_value(values))

        def process_before_every_sampling(self, p: Any, *values: Any, **given: Any) -> None:
            """Puts the features for this pass on: its size and its model are known now."""
            work = AdapterWork.of(p)
            if work is not None:
                work.put_on(given["x"])

        def postprocess(self, p: Any, processed: Any, *values: Any) -> None:
            """Adds the control maps that were asked for to the results."""
            work = AdapterWork.of(p)
            if work is not None:
                work.finish(processed)

    return LycoAdapters


@dataclass(frozen=True)
class _Pasted:
    """What a control takes over from an infotext: of its unit, if the text has one; a unit that the text does not have is switched off. Pictures stay.

    Those of one control are equal in txt2img and img2img.
    """

    number: int
    name: str
    show: Callable[[Unit], Mapping[str, Any]] = field(compare=False)

    def __call__(self, params: Mapping[str, Any]) -> Any:
        text = params.get(INFOTEXT.format(self.number + 1))
        if self.name in PICTURES:
            return None
        if not isinstance(text, str) or not text:
            return False if self.name == "enabled" else None
        try:
            return self.show(parse_unit(text)).get(self.name)
        except LycoError:
            return None
