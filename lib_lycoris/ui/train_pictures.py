"""The Train tab's pictures: handed over, looked through with what would be cut off, and given captions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from ..errors import LycoError
from . import compat, text
from .fields import KIND, Form
from .late import Late
from .train_page import TrainPage

_PAGE = 24
_THUMBNAIL, _LARGE = 256, 640
_FOLDERS = "data.folders"
_ENDINGS = ["image", ".txt", ".caption"]


def draw_pictures(page: TrainPage, form: Form) -> None:
    """Draws what belongs to the pictures beneath their field, as far as the host has it."""
    folders = form.fields()[_FOLDERS]
    if page.sample is not None:
        _draw_sample(page, form)
    if page.upload is not None:
        with gr.Accordion("Upload pictures into a folder of their own", open=False, elem_id="lycoris_upload"):
            _draw_upload(page, folders)
    if page.pictures is not None:
        with gr.Accordion("Look at the pictures: captions, and what would be cut off", open=False, elem_id="lycoris_look"):
            _draw_gallery(page, form)


def _draw_sample(page: TrainPage, form: Form) -> None:
    """Draws the button that fills in the sample pictures of what is to be trained; they follow while that is changed."""
    button = gr.Button("Use the sample pictures", size="sm", elem_id="lycoris_sample")
    answer = gr.HTML(elem_id="lycoris_pictures_problem", elem_classes=["lycoris-problem", "lycoris-said"])
    taken = gr.State("")

    def wire() -> None:
        fields = form.fields()
        late = Late(fields, "sample_settings")

        def take(*values: Any) -> list[Any]:
            given = late.values(values)
            try:
                found = page.sample(str(given[KIND]))
            except LycoError as error:
                return ["", "", text.problems([str(error)])]
            settings = {_FOLDERS: [found["folder"]], **found["settings"]}
            filled = form.filled(settings)
            return [late.tell({key: filled[key] for key in settings if key in filled}, given), filled[_FOLDERS], text.note(found["about"])]

        def follow(before: str, *values: Any) -> list[Any]:
            held = str(late.values(values)[_FOLDERS] or "").strip()
            return take(*values) if before and held == before else ["", gr.update(), gr.update()]

        outputs = [late.told, taken, answer]
        late.after(button.click(take, form.components(), outputs, **compat.quiet()))
        late.after(fields[KIND].change(follow, [taken, *form.components()], outputs, **compat.quiet()))

    form.when_drawn(wire)


def _draw_upload(page: TrainPage, folders: Any) -> None:
    name = gr.Textbox(label="Name of the folder", value="my-pictures", max_lines=1, elem_id="lycoris_upload_name",
                      info="The pictures are put into a folder of this name among ours, which is then added above.")
    files = gr.File(label="Pictures, and .txt files with their captions", file_count="multiple", file_types=_ENDINGS, elem_id="lycoris_upload_files")
    answer = gr.HTML(elem_id="lycoris_upload_answer", elem_classes=["lycoris-problem"])

    def take(folder: str, listed: str, given: Any) -> tuple[Any, Any, Any]:
        if not given:
            return gr.update(), gr.update(), gr.update()  # emptied by the lines below
        try:
            done = page.upload(folder, [compat.uploaded(file) for file in (given if isinstance(given, list) else [given])])
        except LycoError as error:
            return gr.update(), text.problems([str(error)]), gr.update()
        lines = [line for line in (listed or "").splitlines() if line.strip()]
        lines += [done["folder"]] if done["folder"] not in lines else []
        said = text.notes([f"{len(done['written'])} files were put into {done['folder']}."]) + text.problems(done["problems"])
        return "\n".join(lines), said, gr.update(value=None)

    files.upload(take, [name, folders, files], [folders, answer, files], **compat.quiet())


class _Gallery:
    """One page's look at a dataset: what is listed, a part of it at a time."""

    def __init__(self, page: TrainPage, form: Form) -> None:
        self._page, self._form = page, form

    def look(self, number: int, values: Sequence[Any]) -> list[Any]:
        """(gallery, words, listed paths, page's number, label of the buttons' text, problem)"""
        try:
            config = self._form.config(values)
            found = self._page.pictures(config)
            pictures = found["pictures"]
            last = max(0, math.ceil(len(pictures) / _PAGE) - 1)
            number = min(max(0, number), last)
            part = pictures[number * _PAGE:(number + 1) * _PAGE]
            shown = [(self._page.picture(config, one["path"], _THUMBNAIL), _under(one)) for one in part if one["problem"] is None]
        except LycoError as error:
            return [gr.update(value=None), "", [], 0, text.problems([str(error)])]
        listed = [one["path"] for one in part if one["problem"] is None]
        return [gr.update(value=shown), _summary(found, number, last), listed, number,
                text.problems([one["problem"] for one in pictures if one["problem"]])]

    def select(self, place: int, listed: Sequence[str], values: Sequence[Any]) -> list[Any]:
        """(large picture, words, caption, chosen path)"""
        try:
            config = self._form.config(values)
            path = listed[place]
            one = next(one for one in self._page.pictures(config)["pictures"] if one["path"] == path)
            return [gr.update(value=self._page.picture(config, path, _LARGE), visible=True), text.notes(_about(one)),
                    gr.update(value=one["caption"], interactive=True), path]
        except (LycoError, IndexError, StopIteration):
            return [gr.update(visible=False), text.problems(["This picture is no longer there: look at the folder again."]), gr.update(interactive=False), ""]

    def save(self, path: str, caption: str, values: Sequence[Any]) -> str:
        if not path:
            return text.problems(["Choose a picture first."])
        try:
            one = self._page.caption(self._form.config(values), path, caption)
        except LycoError as error:
            return text.problems([str(error)])
        return text.notes([f"Saved beside {one['name']}."] if one["caption"] else [f"{one['name']} has no caption now."])


def _draw_gallery(page: TrainPage, form: Form) -> None:
    gallery = _Gallery(page, form)
    with gr.Row():
        show = gr.Button("Show the pictures", size="sm", elem_id="lycoris_show_pictures")
        back = gr.Button("Previous", size="sm", elem_id="lycoris_pictures_back")
        more = gr.Button("Next", size="sm", elem_id="lycoris_pictures_next")
    problem = gr.HTML(elem_id="lycoris_gallery_problem", elem_classes=["lycoris-problem"])
    words = gr.HTML("", elem_id="lycoris_gallery_words")
    pictures = gr.Gallery(label="Pictures", columns=4, height=360, object_fit="contain", show_label=False, elem_id="lycoris_gallery",
                          allow_preview=False, **compat.without_sharing())
    large = gr.Image(visible=False, show_label=False, interactive=False, height=320, elem_id="lycoris_gallery_large", label="The chosen picture",
                     **compat.plain_image())
    about = gr.HTML("", elem_id="lycoris_gallery_about")
    caption = gr.Textbox(label="Caption", lines=2, interactive=False, elem_id="lycoris_caption",
                         info="What the picture shows, with your new word in it; saved as a text file beside it. Empty: the file is removed.")
    save = gr.Button("Save the caption", size="sm", elem_id="lycoris_save_caption", visible=page.caption is not None)
    saved = gr.HTML("", elem_id="lycoris_caption_saved")
    listed, number, chosen = gr.State([]), gr.State(0), gr.State("")
    fields = form.components  # asked for when the events are made: the fields are drawn by then

    def on_select(event: gr.SelectData, paths: Sequence[str], *values: Any) -> list[Any]:
        return [*gallery.select(event.index, paths, values), ""]

    page_of = [pictures, words, listed, number, problem]

    def wire() -> None:
        for button, step in ((show, 0), (back, -1), (more, 1)):
            button.click(lambda at, *values, step=step: gallery.look(at + step if step else 0, values), [number, *fields()], page_of, **compat.quiet())
        pictures.select(on_select, [listed, *fields()], [large, about, caption, chosen, saved], **compat.quiet())
        save.click(lambda path, words, *values: gallery.save(path, words, values), [chosen, caption, *fields()], [saved], **compat.quiet())

    form.when_drawn(wire)


def _under(one: Mapping[str, Any]) -> str:
    caption = " ".join(one["caption"].split())
    return (caption[:60] + "…" if len(caption) > 60 else caption) or "no caption"


def _summary(found: Mapping[str, Any], number: int, last: int) -> str:
    pictures = [one for one in found["pictures"] if one["problem"] is None]
    sizes: dict[str, int] = {}
    for one in pictures:
        size = "×".join(map(str, one["trained"]))
        sizes[size] = sizes.get(size, 0) + 1
    cropped = [one for one in pictures if one["cropped"] >= 0.01]
    lines = [f"{len(pictures)} pictures" + (f", part {number + 1} of {last + 1}" if last else ""),
             "Trained at " + ", ".join(f"{size} ({count})" for size, count in sorted(sizes.items())) + " pixels"]
    if cropped:
        most = max(cropped, key=lambda one: one["cropped"])
        lines.append(f"{len(cropped)} are cropped, the most {most['name']} by {most['cropped']:.0%}: what is dark is cut off")
    return text.notes([*lines, *found["problems"]])


def _about(one: Mapping[str, Any]) -> list[str]:
    size, trained = ("×".join(map(str, one[name])) for name in ("size", "trained"))
    cut = f", {one['cropped']:.1%} of it is cut off (dark)" if one["cropped"] >= 0.001 else ", nothing is cut off"
    repeats = f"; counts {one['repeats']} times" if one["repeats"] > 1 else ""
    return [f"{one['name']}: {size} pixels, trained at {trained}, scaled by {one['scale']:.2f}{cut}{repeats}"]
