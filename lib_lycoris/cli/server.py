"""The studio's server: the page and the routes on 127.0.0.1."""

from __future__ import annotations

import base64
import errno
import logging
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LycoError, TrainingError
from .interrupt import InterruptedWork
from .workbench import Workbench

ADDRESS = "127.0.0.1"
PORT = 7865
_TRIES = 20
_SAVE_SECONDS = 120
LARGEST_UPLOAD = "50mb"
"""Of a file that is dropped into the page."""


def serve(bench: Workbench, port: int | None = None) -> None:
    """Serves the studio until Ctrl-C.

    Args:
        bench: what page and routes do.
        port: None: the usual one, or the next that is free.

    Raises:
        LycoError: the port is taken, or the checkpoint can't be loaded.
        InterruptedWork: Ctrl-C.
    """
    listener = listen(port)
    number = listener.getsockname()[1]
    print("Lyco Studio is starting …", flush=True)
    import uvicorn

    # The page first: two threads that import large packages at once get into each other's way.
    server = uvicorn.Server(uvicorn.Config(make_app(bench), log_level="warning", lifespan="on"))
    threading.Thread(target=bench.load, name="lycoris-load", daemon=True).start()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="lycoris-server", daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.05)
        print(f"Lyco Studio is ready: http://{ADDRESS}:{number}   (Ctrl-C ends it)", flush=True)
        while thread.is_alive() and bench.error is None:
            thread.join(0.5)
    except KeyboardInterrupt:
        raise InterruptedWork(_end_training(bench)) from None
    finally:
        server.should_exit = server.force_exit = True
        thread.join(5)
    raise bench.error or LycoError("the server ended by itself: start it again with --debug and look at its messages")


def listen(port: int | None) -> socket.socket:
    """A socket on this machine's own address.

    Raises:
        LycoError: the port is taken; without a wish, so are the usual one and those after it.
    """
    for number in [port] if port is not None else range(PORT, PORT + _TRIES):
        try:
            return _bind(number)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            reason = "is taken by another program" if error.errno == errno.EADDRINUSE else "may not be used by you"
    wanted = f"port {port}" if port is not None else f"every port from {PORT} to {PORT + _TRIES - 1}"
    raise LycoError(f"{wanted} {reason}: choose another with --port")


def _bind(number: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where SO_REUSEADDR would let two programs share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS, number))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def make_app(bench: Workbench) -> Any:
    """The FastAPI app with routes and page."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from ..api.guard import Guard
    from ..api.routes import Callables, add_routes
    from ..setting import section_settings
    from ..studio.generate import GenerateSettings
    from ..ui import style

    logging.getLogger("httpx").setLevel(logging.WARNING)
    record = section_settings(GenerateSettings)
    app = FastAPI(title="Lyco Studio", docs_url="/docs")
    # A page of another site could reach 127.0.0.1 under a name of its own; it can't forge the name it asks for.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[ADDRESS, "localhost"])
    app.add_middleware(Guard)
    callables = Callables(networks=bench.shelf.rows, network=bench.shelf.look_into, remark=bench.shelf.remark, delete=bench.shelf.delete,
                          train=bench.train, state=bench.state, stop=bench.stop, pause=bench.pause, resume=bench.resume, preview=bench.preview,
                          check=bench.check, desk=bench.desk, generate=lambda values: _generate(bench, values), library=library_calls(bench.library),
                          pictures=bench.pictures, recall=lambda name: _encoded(bench.recall(name)),
                          read_picture=lambda values: _encoded(bench.read_picture(values)), words=bench.words,
                          embeddings=bench.embeddings.rows, embedding=bench.embeddings.look_into, remark_embedding=bench.embeddings.remark,
                          delete_embedding=bench.embeddings.delete,
                          adapters=bench.adapters.rows, control_map=bench.adapters.control_map, preprocessors=bench.adapters.preprocessors)
    add_routes(app, callables, picture=record)
    page = make_page(bench, record)
    allowed = [str((bench.outputs / folder).resolve()) for folder in ("pictures", "control-maps", "control-pictures")]
    script = "\n".join((Path(style.__file__).parent / name).read_text(encoding="utf-8") for name in ("complete.js", "keys.js"))
    return gr.mount_gradio_app(app, page, path="/", css=style.CSS, head=f"{style.HEAD}<script>{script}</script>", allowed_paths=allowed, footer_links=[],
                               ssr_mode=False, show_error=False, max_file_size=LARGEST_UPLOAD)


def make_page(bench: Workbench, record: list[Any]) -> Any:
    """The studio's page over its workbench."""
    from ..studio.sampler import SAMPLERS
    from ..training.desk import desk_functions
    from ..training.kinds import unknown_settings
    from ..ui import page
    from ..ui.generate import GeneratePage
    from ..ui.train import TrainPage

    desk = bench.desk
    train = TrainPage(
        start=bench.train, stop=bench.stop, state=bench.state, check=bench.check, pause=bench.pause, resume=bench.resume, preview=bench.preview,
        defaults=bench.defaults(), unknown=unknown_settings(), **desk_functions(desk),
    )
    generate = GeneratePage(record=record, generate=bench.generate, stop=bench.stop_generating, networks=bench.network_names,
                            choices={"generate.sampler": list(SAMPLERS)}, history=bench.pictures, recall=bench.recall, read_picture=bench.read_settings,
                            adapters=make_adapters(bench.adapters))
    return page.make_page(train, generate, bench.title, lambda: dict.fromkeys(page.LATE, bench.side()) if bench.side() else {}, make_library(bench.library))


def make_adapters(adapters: Any) -> Any:
    """What the adapters' part of the Generate tab does, over a `cli.adapters.Adapters`."""
    from ..ui.adapters import AdapterPage

    return AdapterPage.over(adapters, "Adapters that fit the checkpoint; put files into the folder adapters, or train one, and refresh.")


def make_library(library: Any) -> Any:
    """What the page's Library tab does, over a `tools.library.Library`."""
    from ..tools.actions import ACTIONS
    from ..ui.library import LibraryPage

    return LibraryPage.over(library, ACTIONS)


def library_calls(library: Any) -> Any:
    """What the library's routes do."""
    from ..api.routes import LibraryCalls
    from ..tools.actions import ACTIONS

    return LibraryCalls(ACTIONS, library.run, library.jobs.states, library.jobs.stop, library.trash)


def _generate(bench: Workbench, values: Mapping[str, Any]) -> dict[str, Any]:
    """The pictures as a program wants them: with the PNG's bytes in base64."""
    made = bench.generate(values, wait=False)
    for picture in made["pictures"]:
        picture["image"] = base64.b64encode(Path(picture["path"]).read_bytes()).decode("ascii")
        picture["map_images"] = [base64.b64encode(Path(path).read_bytes()).decode("ascii") for path in picture["maps"]]
    return made


def _encoded(recalled: Mapping[str, Any]) -> dict[str, Any]:
    """What a picture tells, as a program wants it: with the bytes of its units' pictures in base64, so that it can be posted to `generate` again."""

    def encode(value: Any) -> Any:
        if isinstance(value, list):
            return [encode(each) for each in value]
        return base64.b64encode(value.read_bytes()).decode("ascii") if isinstance(value, Path) else value

    return {**recalled, "units": [{name: encode(value) for name, value in unit.items()} for unit in recalled["units"]]}


def _end_training(bench: Workbench) -> str:
    """Stops a training that is under way; gives a line that names what was saved."""
    if not bench.job.state().busy:
        return "Lyco Studio has ended"
    print("a training is under way: it is being saved, a moment …", flush=True)
    bench.job.stop()
    state = bench.job.wait(_SAVE_SECONDS)
    if state.phase == "failed":
        raise TrainingError(str(state.error))
    return f"Lyco Studio has ended; {state.log[-1] if state.log else 'nothing was saved'}"
