"""The page's Library tab, in the WebUI and in the studio: what is on disk, what it is, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..errors import LycoError
from ..setting import Action
from . import compat, library_text, text
from .library_actions import Actions
from .library_list import SORTS, choices, count_words, find_rows, page_of, pages

TITLES = {"networks": "Networks", "embeddings": "Embeddings", "adapters": "Adapters"}


@dataclass(frozen=True)
class LibraryPage:
    """What the Library tab does and shows, as plain functions of plain values; they raise a `LycoError` where they can't.

    Attributes:
        actions: what can be done, with its records (`tools.actions.ACTIONS`).
        shelves: the kinds of files that there are: "networks", "embeddings", "adapters".
        rows: gives what is on a shelf, quickly: it is asked with each key that is typed into the search.
        refresh: has the folders read anew when `rows` is asked next.
        describe: takes a name and a shelf, gives what is known of the file without its tensors being read.
        picture: takes a name and a shelf, gives the preview (PIL), or None.
        run: takes an action's name and its values; gives what came of it, or of a long one its job.
        jobs: gives the work in the background.
        stop: stops all of it.
        trash: gives what lies in the trash.
        polls: whether the page may ask for news by itself; else there is a Refresh button that the host's script presses.
    """

    actions: Sequence[Action]
    shelves: Sequence[str]
    rows: Callable[[str], Sequence[Mapping[str, Any]]]
    refresh: Callable[[], Any]
    describe: Callable[[str, str], Mapping[str, Any]]
    picture: Callable[[str, str], Any]
    run: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
    jobs: Callable[[], Mapping[str, Any]]
    stop: Callable[[], Any]
    trash: Callable[[], Sequence[Mapping[str, Any]]]
    polls: bool = True

    @staticmethod
    def over(library: Any, actions: Sequence[Action], polls: bool = True) -> LibraryPage:
        """The page over a `tools.library.Library`."""
        return LibraryPage(actions, library.shelves, library.rows, library.refresh, library.describe, library.picture, library.run, library.jobs.states,
                           library.jobs.stop, library.trash, polls)


def draw_library(blocks: gr.Blocks, tab: Any, page: LibraryPage) -> Actions:
    """Draws the tab's content into the surrounding gradio context; gives the forms of its actions.

    Args:
        blocks: the page.
        tab: the tab itself; whenever it is opened the list is read anew. None: at the page's load alone.
        page: what it does.
    """
    with gr.Row(elem_classes=["lycoris-library"]):
        with gr.Column(scale=2, min_width=300):
            chooser = _Chooser(page)
        with gr.Column(scale=5, min_width=420):
            shown = _Shown(page)
            actions = Actions(page, shown.quiet)
    shown.said_by(actions)
    place = [chooser.shelf, chooser.names]
    quiet = shown.quiet
    details = [*shown.outputs, *actions.filled, shown.said]

    def show(shelf: str, name: str | None) -> list[Any]:
        return [*shown.update(shelf, name), *actions.fill(shelf, name), ""]

    def read_list(shelf: str, search: str, sort: str, chosen: str | None, number: int | None = None) -> list[Any]:
        """The list; and where what was chosen is not in it any more, nothing is shown of it."""
        updates, kept = chooser.update(shelf, search, sort, chosen, number)
        if kept == chosen:  # whoever has chosen another file while this was on its way keeps that one
            del updates[0]["value"]
        return [*updates, *(show(shelf, None) if chosen and not kept else [gr.update() for _ in details])]

    def turn(by: int) -> Callable[..., list[Any]]:
        return lambda shelf, search, sort, chosen, number: read_list(shelf, search, sort, chosen, number + by)

    def read_anew(*asked: Any) -> list[Any]:
        page.refresh()
        return read_list(*asked)

    asked = [chooser.shelf, chooser.search, chooser.sort, chooser.names]
    listed = [*chooser.listed, *details]
    for control in (chooser.search, chooser.sort):
        control.change(read_list, asked, listed, **quiet)
    for button, by in ((chooser.earlier, -1), (chooser.later, 1)):
        button.click(turn(by), [*asked, chooser.number], listed, **quiet)
    chooser.shelf.change(lambda shelf, search, sort: [*chooser.update(shelf, search, sort, None)[0], *show(shelf, None)], asked[:3], listed, **quiet)
    chooser.names.input(show, place, details, **quiet)
    openings = [chooser.refresh.click, blocks.load, *([tab.select] if tab is not None else [])]
    for opened in openings:
        opened(read_anew, asked, listed, **quiet).then(actions.look_into_trash, [], [actions.trash_list], **quiet)

    def after(name: str | None, shelf: str, search: str, sort: str) -> list[Any]:
        """What changes on the page once an action has changed the disk: list, details, trash."""
        return [*chooser.update(shelf, search, sort, name)[0], *shown.update(shelf, name)[:3], *actions.fill(shelf, name), actions.look_into_trash()]

    actions.wire(chooser, after, [*chooser.listed, shown.about, shown.picture, shown.beside, *actions.filled, actions.trash_list])
    look = make_look(page)

    def look_and_list(seen: str, shelf: str, name: str | None, search: str, sort: str, number: int) -> list[Any]:
        """What is polled, and the list anew once a piece of work has ended, which may have written a file."""
        found = look(seen, shelf, name)
        if not isinstance(found[2], str) or _ended(seen) == _ended(found[2]):
            return [*found, *(gr.update() for _ in chooser.listed)]
        updates, _ = chooser.update(shelf, search, sort, name, number)
        del updates[0]["value"]  # whoever has chosen another file meanwhile keeps that one
        return [*found, *updates]

    polled = [shown.seen, *place, chooser.search, chooser.sort, chooser.number]
    outputs = [shown.work, shown.stop, shown.seen, actions.figures, actions.comparison, *chooser.listed]
    if page.polls:
        compat.poll(blocks, look_and_list, polled, outputs)
    shown.poll.click(look_and_list, polled, outputs, **quiet)
    shown.stop.click(lambda: _told(page.stop), [], [shown.problem], **quiet)
    return actions


def make_look(page: LibraryPage) -> Callable[[str, str, str | None], list[Any]]:
    """The function that a page polls: how the work in the background stands, or nothing to change when it shows that already."""

    def look(seen: str, shelf: str, name: str | None) -> list[Any]:
        state = page.jobs()
        busy = [job for job in state["jobs"] if job["phase"] in ("waiting", "running")]
        version = f"{state['version']} {max((job['id'] for job in state['jobs'] if job not in busy), default=0)}"
        if version == seen:
            return [gr.update() for _ in range(5)]
        return [library_text.jobs(state["jobs"]), gr.update(visible=bool(busy)), version, _figures(page, shelf, name), _comparison(state["jobs"], name)]

    return look


def _ended(seen: str) -> str:
    """Which piece of work had ended last, of what `look` gives as seen; "0" for none, and where nothing was seen yet."""
    return seen.rpartition(" ")[2] or "0"


def _figures(page: LibraryPage, shelf: str, name: str | None) -> Any:
    if not name or shelf != "networks":
        return gr.update()
    try:
        return library_text.measured(page.describe(name, shelf).get("measured"))
    except LycoError:
        return gr.update()


def _comparison(jobs: Sequence[Mapping[str, Any]], name: str | None) -> Any:
    """The newest comparison with the chosen network."""
    done = [job["result"] for job in jobs if job["phase"] == "done" and job.get("result") and "alikeness" in job["result"] and job["result"]["name"] == name]
    return library_text.compared(done[-1]) if done else gr.update()


def _told(work: Callable[[], Any]) -> str:
    try:
        work()
    except LycoError as error:
        return text.problems([str(error)])
    return ""


class _Chooser:
    """The list at the left: kind, search, order, files."""

    def __init__(self, page: LibraryPage) -> None:
        self._page = page
        self.shelf = gr.Radio(choices=[(TITLES[shelf], shelf) for shelf in page.shelves], value=page.shelves[0], label="What to list",
                              elem_id="lycoris_library_shelf", visible=len(page.shelves) > 1)
        self.search = gr.Textbox(label="Search", placeholder="name, kind, base model, words", elem_id="lycoris_library_search")
        self.sort = gr.Dropdown(choices=list(SORTS), value="Name", label="Order", elem_id="lycoris_library_sort")
        self.names = compat.of_any_list(
            gr.Radio(choices=[], label="Files", elem_id="lycoris_library_files", elem_classes=["lycoris-files"], interactive=True))
        self.count = gr.HTML(elem_id="lycoris_library_count")
        with gr.Row():
            self.earlier = gr.Button("Earlier", visible=False, elem_id="lycoris_library_earlier", size="sm", min_width=90)
            self.later = gr.Button("Later", visible=False, elem_id="lycoris_library_later", size="sm", min_width=90)
        self.refresh = gr.Button("Read the folders again", elem_id="lycoris_library_read", size="sm")
        self.number = gr.State(0)
        self.listed = [self.names, self.count, self.number, self.earlier, self.later]

    def update(self, shelf: str, search: str, sort: str, chosen: str | None, number: int | None = None) -> tuple[list[Any], str | None]:
        """(the updates of `listed`, the chosen file where it still stands there).

        Args:
            shelf: what to list.
            search: words that it has to hold.
            sort: one of SORTS.
            chosen: a file.
            number: the page of the list; None: that on which the chosen file stands.
        """
        rows = self._page.rows(shelf)
        found = find_rows(rows, search or "", sort)
        last = pages(len(found)) - 1
        number = page_of(found, chosen) if number is None else min(max(0, number), last)
        offered = choices(found, number)
        kept = chosen if any(name == chosen for _, name in offered) else None
        turns = [gr.update(visible=last > 0, interactive=number > 0), gr.update(visible=last > 0, interactive=number < last)]
        return [gr.update(choices=offered, value=kept), library_text.said(count_words(len(found), len(rows), number)), number, *turns], kept


class _Shown:
    """What is shown of the chosen file, and of the work in the background."""

    def __init__(self, page: LibraryPage) -> None:
        self._page = page
        self.quiet = {"queue": False, "show_progress": "hidden" if compat.HAS_TIMER else False, "api_name": False}
        self.problem = gr.HTML(elem_id="lycoris_library_problem", elem_classes=["lycoris-problem"])
        self.said = gr.HTML(elem_id="lycoris_library_said")
        self.work = gr.HTML(elem_id="lycoris_library_work", elem_classes=["lycoris-progress"])
        with gr.Row():
            self.stop = gr.Button("Stop this work", visible=False, elem_id="lycoris_library_stop", size="sm")
            # a script of the host's page presses it
            self.poll = gr.Button("Refresh", visible=not page.polls, elem_id="lycoris_library_refresh", elem_classes=["lycoris-poll", "lycoris-hidden"])
        with gr.Row():
            with gr.Column(scale=3, min_width=260):
                self.about = gr.HTML(library_text.NOTHING_CHOSEN, elem_id="lycoris_library_about")
            with gr.Column(scale=2, min_width=180, visible=False) as self.beside:
                self.picture = gr.Image(label="Preview", interactive=False, height=260, elem_id="lycoris_library_picture", **compat.plain_image())
        self.seen = gr.State("")
        self.outputs = [self.about, self.picture, self.beside, self.problem]

    def said_by(self, actions: Actions) -> None:
        """Where the actions tell what they did and what went wrong."""
        actions.said, actions.problem = self.said, self.problem

    def update(self, shelf: str, name: str | None) -> list[Any]:
        """What is known of that file."""
        if not name:
            return [library_text.NOTHING_CHOSEN, gr.update(value=None), gr.update(visible=False), ""]
        try:
            seen = self._page.describe(name, shelf)
        except LycoError as error:
            return [library_text.NOTHING_CHOSEN, gr.update(value=None), gr.update(visible=False), text.problems([str(error)])]
        picture = self._page.picture(name, shelf)
        return [library_text.describe(seen), gr.update(value=picture), gr.update(visible=picture is not None), ""]
