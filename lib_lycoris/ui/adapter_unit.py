"""One unit of the accordion for T2I-Adapters: its controls, how they follow each other, and what they show of given values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from ..errors import ConfigError, LycoError, shown
from ..prompt.unit import HIRES, RESIZE_MODES, Unit
from ..prompt.unit_values import FIELDS, NOTHING, PICTURES, UNSET, plain_values, split_unit
from ..setting import section_settings
from . import compat, text

STUDIO = "generate"
"""The studio's tab, which has no hires pass."""
RESTORED = (*FIELDS, "colours", "told", "words", "preview", "problem")
"""What `restored_unit` gives updates for."""

_HIRES_LABELS = {"both": "both passes", "low": "first pass only", "high": "hires pass only"}
_WITHOUT = "Leaves the picture as it is: choose this for a finished control map."


def adapter_choices(page: Any, name: str) -> list[str]:
    """What a dropdown of adapters offers: what there is now, and what is chosen."""
    names = [NOTHING, *page.names()]
    return names if name in names else [*names, name]


def shown_values(unit: Unit, page: Any) -> dict[str, Any]:
    """For each control of a unit (and "colours", "told") what it shows of it, as gradio's updates; pictures stay as they are."""
    found = {name: getattr(unit, name) for name in FIELDS if name not in PICTURES}
    found["adapter"] = gr.update(value=unit.adapter or NOTHING, choices=adapter_choices(page, unit.adapter or NOTHING))
    found["processor_resolution"] = unit.processor_resolution or 0
    described = _described(page, unit.preprocessor)
    return found | _sliders(described, unit.threshold_a, unit.threshold_b) | _texts(described)


def restored_unit(page: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """For each of RESTORED what shows the unit of these values, whose pictures are paths."""
    unit, pictures = split_unit(values)
    try:
        said = text.note(page.describe(unit.adapter)["words"])
    except LycoError as error:
        said = text.problems([str(error)])
    given = {"picture": pictures.get("picture"), "mask": pictures.get("mask")}
    files = [str(path) for path in pictures.get("pictures", ())] or None
    return {**shown_values(unit, page), **{name: gr.update(value=path and str(path)) for name, path in given.items()}, "pictures": gr.update(value=files),
            "words": said, "preview": gr.update(value=None), "problem": ""}


def draw_unit(page: Any, tab: str, number: int, size: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the controls by name whose values come, the others) of a unit, drawn into the surrounding gradio context.

    Args:
        page: what they do, `adapters.AdapterPage`.
        tab: "txt2img", "img2img" or STUDIO.
        number: the unit's, from 0.
        size: the components for width and height, where there are some.
    """
    help_of = {setting.name: setting.help for setting in section_settings(Unit)}
    default = Unit()

    def about(name: str, label: str, info: str | None = None) -> dict[str, Any]:
        return {"label": label, "elem_id": f"lyco_adapter_{tab}_{number + 1}_{name}", "info": help_of.get(name) if info is None else info or None}

    unit: dict[str, Any] = {}
    wide = 240 if tab == STUDIO else 220  # in a narrow column explained sliders stand beneath each other
    with gr.Row(elem_classes=["lyco-adapter-head"]):
        unit["enabled"] = gr.Checkbox(False, scale=0, min_width=90, **about("enabled", "Enable", ""))
        unit["adapter"] = gr.Dropdown([NOTHING, *page.names()], value=NOTHING, scale=4, **about("adapter", "Adapter", ""))
        shape = {"min_width": 90, "size": "sm"} if tab == STUDIO else {"min_width": 40, "elem_classes": ["tool"]}
        refresh = gr.Button("Refresh" if tab == STUDIO else "🔄", scale=0, **shape, elem_id=f"lyco_adapter_{tab}_{number + 1}_refresh")
    problem = gr.HTML(elem_id=f"lyco_adapter_{tab}_{number + 1}_problem", elem_classes=["lyco-adapter-words", "lycoris-problem"], visible=tab == STUDIO)
    words = gr.HTML(text.note(page.begin), elem_id=f"lyco_adapter_{tab}_{number + 1}_words", elem_classes=["lyco-adapter-words", "lycoris-problem"])
    with gr.Row(equal_height=False):
        with gr.Column(min_width=200):
            picture_about = about("picture", "Picture (left empty: the one of img2img)" if tab == "img2img" else "Picture", "")
            picture_about.pop("info")
            unit["picture"] = gr.Image(type="numpy", image_mode="RGBA", height=240, **compat.no_camera(), **picture_about)
        with gr.Column(min_width=200):
            preview = gr.Image(label="Control map", interactive=False, height=240, elem_id=f"lyco_adapter_{tab}_{number + 1}_map",
                               elem_classes=["lyco-adapter-map"], **compat.plain_image())
    with gr.Row(elem_classes=["lyco-adapter-head"]):
        names = [each["name"] for each in page.preprocessors()]
        unit["preprocessor"] = gr.Dropdown(names, value="none", scale=4, **about("preprocessor", "Preprocessor: makes the control map out of the picture", ""))
        look = gr.Button("Show map", scale=0, min_width=110, **({"size": "sm"} if tab == STUDIO else {}),
                         elem_id=f"lyco_adapter_{tab}_{number + 1}_preview")
    told = gr.HTML(text.note(_WITHOUT), elem_id=f"lyco_adapter_{tab}_{number + 1}_told", elem_classes=["lyco-adapter-words", "lycoris-problem"])
    with gr.Row():
        unit["processor_resolution"] = gr.Slider(0, 2048, 0, step=64, min_width=wide, **about("processor_resolution", "Resolution", "0: the adapter's own"))
        unit["threshold_a"] = gr.Slider(UNSET, 255, UNSET, visible=False, min_width=wide, **about("threshold_a", "First value", " "))
        unit["threshold_b"] = gr.Slider(UNSET, 255, UNSET, visible=False, min_width=wide, **about("threshold_b", "Second value", " "))
    with gr.Row(visible=False, elem_classes=["lyco-adapter-head"]) as colours:
        picker = gr.ColorPicker(value="#b03020", label="Colour", scale=1, min_width=90)
        add = gr.Button("Add to palette", scale=1, min_width=110, size="sm", elem_id=f"lyco_adapter_{tab}_{number + 1}_add")
        unit["palette"] = gr.Textbox("", scale=4, max_lines=1, placeholder="#b03020:2 #e0c080 #204060",
                                     **about("palette", "Palette", "Colours with a share behind a colon; empty: the example"))
    unit["keypoints"] = gr.Textbox("", lines=2, max_lines=4, visible=False, **about("keypoints", "Key points", "OpenPose's JSON; no picture is needed"))
    with gr.Row():
        unit["weight"] = gr.Slider(0, 2, default.weight, step=0.05, **about("weight", "Weight", ""))
        unit["start"] = gr.Slider(0, 1, default.start, step=0.01, **about("start", "Start", ""))
        unit["end"] = gr.Slider(0, 1, default.end, step=0.01, **about("end", "End", ""))
    with gr.Accordion("More of this adapter", open=False):
        unit["resize_mode"] = gr.Radio(list(RESIZE_MODES), value=default.resize_mode, **about("resize_mode", "Resize mode"))
        unit["hires"] = gr.Radio([(_HIRES_LABELS[name], name) for name in HIRES], value=default.hires, visible=tab != STUDIO,
                                 **about("hires", "With hires. fix it acts in", ""))
        unit["level_weights"] = gr.Textbox("", max_lines=1, placeholder="1, 1, 1, 1", **about("level_weights", "Weights of the four sizes"))
        with gr.Row(equal_height=False):
            with gr.Column(min_width=200):
                mask_about = about("mask", "Region mask (acts where white)", "")
                mask_about.pop("info")
                unit["mask"] = gr.Image(type="numpy", image_mode="L", height=160, **compat.no_camera(), **mask_about)
            with gr.Column(min_width=200):
                files_about = about("pictures", "One picture for each of a batch", "")
                files_about.pop("info")
                unit["pictures"] = gr.File(file_count="multiple", file_types=["image"], height=160, **files_about)
        with gr.Row():
            unit["save_map"] = gr.Checkbox(False, **about("save_map", "Add the control map to the results", ""))
            unit["strict"] = gr.Checkbox(False, **about("strict", "Stop with an error where the adapter can't act", ""))
    extra = {"refresh": refresh, "words": words, "told": told, "look": look, "preview": preview, "picker": picker, "add": add, "colours": colours,
             "problem": problem}
    _connect(page, unit, extra, size)
    return unit, extra


def _connect(page: Any, unit: Mapping[str, Any], extra: Mapping[str, Any], size: Sequence[Any]) -> None:
    """Has the controls follow each other. `input` and `select` are the user's own hand: what an infotext's paste sets must stay."""
    bound = ("threshold_a", "threshold_b", "keypoints", "colours", "told")
    followers = [{**unit, **extra}[name] for name in bound]

    def list_names(name: str) -> Any:
        return gr.update(choices=adapter_choices(page, name))

    def choose_adapter(name: str) -> list[Any]:
        still = [gr.update() for _ in range(3 + len(bound))]
        if not name or name == NOTHING:
            return ["", *still]
        try:
            said = page.describe(name)
        except LycoError as error:
            return [text.problems([str(error)]), *still]
        preprocessor = said["preprocessor"]
        return [text.note(said["words"]), True, preprocessor, said["resolution"] or 0, *choose_preprocessor(preprocessor, said.get("values") or ())]

    def choose_preprocessor(name: str, values: Sequence[float | None] = ()) -> list[Any]:
        described = _described(page, name)
        follow = _sliders(described, *values) | _texts(described)
        return [follow[each] for each in bound]

    def show_map(*values: Any) -> list[Any]:
        name = values[FIELDS.index("preprocessor")]
        asked = plain_values(values[: len(FIELDS)])
        try:
            sides = tuple(_side(value) for value in values[len(FIELDS) :]) or (512, 512)
            return [page.preview(asked, sides), _texts(_described(page, name))["told"]]
        except LycoError as error:
            return [gr.update(), text.problems([str(error)])]

    quiet = compat.quiet()
    extra["refresh"].click(list_names, [unit["adapter"]], [unit["adapter"]], **quiet)
    unit["adapter"].input(choose_adapter, [unit["adapter"]],
                          [extra["words"], unit["enabled"], unit["preprocessor"], unit["processor_resolution"], *followers], **quiet)
    unit["preprocessor"].input(choose_preprocessor, [unit["preprocessor"]], followers, **quiet)
    extra["add"].click(lambda palette, colour: f"{palette} {colour}".strip(), [unit["palette"], extra["picker"]], [unit["palette"]], **quiet)
    extra["look"].click(show_map, [*(unit[name] for name in FIELDS), *size], [extra["preview"], extra["told"]], **{**quiet, "queue": True})


def _side(value: Any) -> int:
    """Pixels of a field for a side.

    Raises:
        ConfigError: it holds no number.
    """
    try:
        return int(float(value))
    except (TypeError, ValueError):
        raise ConfigError(f"{shown(value)} is no width or height: give both in pixels") from None


def _sliders(described: Mapping[str, Any] | None, *values: float | None) -> dict[str, Any]:
    """The two sliders for a preprocessor's values, at its defaults where none are given; hidden where it has fewer."""
    parameters = list(described["parameters"] if described else ())
    found = {}
    for number, name in enumerate(("threshold_a", "threshold_b")):
        if number >= len(parameters):
            found[name] = gr.update(value=UNSET, minimum=UNSET, visible=False)
            continue
        each = parameters[number]
        given = values[number] if number < len(values) else None
        span = each["maximum"] - each["minimum"]
        step = 1 if each["whole"] or span > 100 else 0.01 if span <= 2 else 0.1
        found[name] = gr.update(value=each["default"] if given is None else given, minimum=each["minimum"], maximum=each["maximum"], step=step,
                                label=each["name"].replace("_", " ").capitalize(), info=each["help"], visible=True)
    return found


def _texts(described: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is to be seen for a palette and for key points, where the preprocessor takes them, and what it does."""
    source = described["source"] if described else ""
    return {"colours": gr.update(visible=source == "palette"), "keypoints": gr.update(visible=source == "keypoints"),
            "told": text.note(described["help"]) if described else ""}


def _described(page: Any, name: str) -> Mapping[str, Any] | None:
    return next((each for each in page.preprocessors() if each["name"] == name), None)
