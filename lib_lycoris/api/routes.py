"""The HTTP routes under `/lycoris/v1/`, over plain callables; the same in the WebUI and in the studio."""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from starlette.concurrency import run_in_threadpool

from ..errors import BusyError, LycoError, UnknownNetworkError, UnknownPresetError
from ..prompt.unit import Unit
from ..setting import Action, Setting, section_settings
from ..training.config import json_schema
from .desk import add_desk

PREFIX = "/lycoris/v1"
LARGEST_BODY = 1_000_000
"""Bytes of JSON that a request may carry; a training config has some thousand."""

LARGEST_PICTURE = 30_000_000
"""The same where it holds a picture."""

NAME = "{name:path}"
"""A network's name in a route: it may hold a folder."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class LibraryCalls:
    """What the routes of the library do: one for each action, and what its page shows beside them.

    Attributes:
        actions: what can be done.
        run: takes an action's name and its values, gives what came of it, or of a long one its job.
        jobs: gives the work in the background: {"version", "jobs": [state]}.
        stop: takes a job's number, or None for all, and stops it; gives what `jobs` gives.
        trash: gives what lies in the trash.
    """

    actions: Sequence[Action]
    run: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
    jobs: Callable[[], Mapping[str, Any]]
    stop: Callable[[int | None], Mapping[str, Any]]
    trash: Callable[[], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Callables:
    """What the routes do, as plain functions of plain values; they raise a `LycoError` where they can't. A host gives those it has.

    Attributes:
        networks: gives one mapping for each network on disk.
        network: takes a network's name, gives what is known of it.
        remark: takes a network's name and the user's remarks on it, gives them as they are then.
        delete: takes a network's name, gives which files are gone.
        train: takes a training config as nested mappings, starts it, gives the state.
        state: gives the state of the training that runs or ran last.
        stop: asks the running training to save and end, gives the state.
        pause: asks the running training to save and free the model until it is resumed, gives the state.
        resume: goes on with the training that is paused (or was stopped, or failed), or takes a config and goes on from its newest saved state;
            gives the state.
        generate: takes settings of a picture, gives a mapping with pictures.
        preview: asks the running training for preview pictures now, gives the state.
        check: takes a training config, gives in words what would happen.
        desk: what is around a training, as `training.desk.Desk`: pictures, captions, uploads, presets, settings in other forms.
        embeddings, embedding, remark_embedding, delete_embedding: the same four for textual inversions.
        preprocess: takes a folder and an interrogator's name, writes captions for the pictures without one, gives which.
        library: what can be done with the files on disk.
        pictures: takes how many, gives the newest pictures that were made.
        recall: takes a picture's name among them, gives its infotext and its settings.
        read_picture: takes {"image": base64 of a PNG}, gives the same of it.
        words: gives what a prompt may name: networks' tags, embeddings' words, trigger words.
        adapters: gives one mapping for each T2I-Adapter on disk.
        control_map: takes a picture (base64), sizes and a unit's values, gives the control map; the same route as `preprocess`, where no folder is named.
        preprocessors: gives one mapping for each preprocessor of control maps.
    """

    networks: Callable[[], Sequence[Mapping[str, Any]]]
    train: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    state: Callable[[], Mapping[str, Any]] | None = None
    stop: Callable[[], Mapping[str, Any]] | None = None
    generate: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    network: Callable[[str], Mapping[str, Any]] | None = None
    remark: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] | None = None
    delete: Callable[[str], Mapping[str, Any]] | None = None
    pause: Callable[[], Mapping[str, Any]] | None = None
    resume: Callable[[Mapping[str, Any] | None], Mapping[str, Any]] | None = None
    preprocess: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    preview: Callable[[], Mapping[str, Any]] | None = None
    check: Callable[[Mapping[str, Any]], Sequence[str]] | None = None
    desk: Any = None
    adapters: Callable[[], Sequence[Mapping[str, Any]]] | None = None
    control_map: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    preprocessors: Callable[[], Sequence[Mapping[str, Any]]] | None = None
    library: LibraryCalls | None = None
    pictures: Callable[[], Sequence[Mapping[str, Any]]] | None = None
    recall: Callable[[str], Mapping[str, Any]] | None = None
    read_picture: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    words: Callable[[], Sequence[Mapping[str, Any]]] | None = None

    def list_adapters(self) -> Mapping[str, Any]:
        """The adapters, and the preprocessors."""
        return {"adapters": list(self.adapters() if self.adapters else ()), "preprocessors": list(self.preprocessors() if self.preprocessors else ())}

    def prepare(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """A control map of a picture, or captions for a folder.

        Raises:
            LycoError: neither is there, or what was asked can't be done.
        """
        work = self.preprocess if "folder" in values else self.control_map
        if work is None:
            raise BodyError("this host makes only " + ("captions: name a folder" if self.preprocess else "control maps: give a picture"))
        return work(values)
    embeddings: Callable[[], Sequence[Mapping[str, Any]]] | None = None
    embedding: Callable[[str], Mapping[str, Any]] | None = None
    remark_embedding: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] | None = None
    delete_embedding: Callable[[str], Mapping[str, Any]] | None = None


def add_routes(app: FastAPI, callables: Callables, authorise: Callable[[str, str], bool] | None = None, picture: Sequence[Setting] = ()) -> None:
    """Adds the routes to an app, one for each callable that there is.

    Args:
        app: the studio's or the WebUI's app.
        callables: what the routes do.
        authorise: says whether a user name and password may come in; without it nobody is asked for them.
        picture: the record of a picture's settings, for the description of `generate`.
    """

    def add(method: str, path: str, summary: str, work: Callable[..., Any] | None, body: Mapping[str, Any] | None = None, required: bool = True,
            largest: int = LARGEST_BODY) -> None:
        if work is None:
            return
        described: dict[str, Any] = {"responses": {"4XX": _ERROR}}
        if body is not None:
            described["requestBody"] = {"required": required, "content": {"application/json": {"schema": dict(body)}}}
        named = NAME in path
        if named:
            described["parameters"] = [_NAME_DESCRIBED]
        app.add_api_route(
            PREFIX + path, _endpoint(work, named, largest if body is not None else None, required, authorise), methods=[method], summary=summary,
            tags=["lycoris"], openapi_extra=described, response_class=JSONResponse, name=f"lycoris {method.lower()} {path.strip('/').replace(NAME, 'NAME')}",
        )

    add("GET", "/networks", "The networks on disk", lambda: {"networks": list(callables.networks())})
    add("GET", f"/networks/{NAME}", "One network: what its file says, and the user's remarks", callables.network)
    add("PATCH", f"/networks/{NAME}", "Change the user's remarks on a network", callables.remark, _REMARKS)
    add("DELETE", f"/networks/{NAME}", "Move a network's file to the trash, and what belongs to it alone: remarks, previews", callables.delete)
    embeddings = callables.embeddings
    add("GET", "/embeddings", "The embeddings on disk", None if embeddings is None else lambda: {"embeddings": list(embeddings())})
    add("GET", f"/embeddings/{NAME}", "One embedding: what its file says, its vectors' lengths, and the user's remarks", callables.embedding)
    add("PATCH", f"/embeddings/{NAME}", "Change the user's remarks on an embedding", callables.remark_embedding, _REMARKS)
    add("DELETE", f"/embeddings/{NAME}", "Move an embedding's file to the trash, and what belongs to it alone: remarks, previews", callables.delete_embedding)
    add("POST", "/train", "Start a training; the body is a training config", callables.train, json_schema())
    add("GET", "/train", "The training that runs or ran last", callables.state)
    add("POST", "/train/stop", "Save and end the running training", callables.stop)
    add("POST", "/train/pause", "Save the running training and free the model until it is resumed", callables.pause)
    add("POST", "/train/resume", "Go on with the paused (or stopped, or failed) training; with a config: from that training's newest saved state",
        callables.resume, json_schema(), required=False)
    add("POST", "/train/preview", "Make preview pictures after the step that the running training is in", callables.preview)
    add("POST", "/train/check", "In words, what a training would do; the body is its config",
        None if callables.check is None else lambda config: {"lines": list(callables.check(config))}, json_schema())
    if callables.desk is not None:
        add_desk(add, callables.desk)
    if callables.adapters is not None:
        add("GET", "/adapters", "The T2I-Adapters on disk, and the preprocessors of control maps", callables.list_adapters)
    if callables.preprocess is not None or callables.control_map is not None:
        add("POST", "/preprocess", "Make a control map of a picture; or, given a folder, write captions for its pictures that have none", callables.prepare,
            _PREPROCESS, largest=LARGEST_PICTURE)
    add("POST", "/generate", "Generate pictures", callables.generate, _picture_schema(picture, callables.adapters is not None), largest=LARGEST_PICTURE)
    pictures, words = callables.pictures, callables.words
    add("GET", "/pictures", "The newest pictures that were made", None if pictures is None else lambda: {"pictures": list(pictures())})
    add("POST", "/pictures/read", "The settings in a PNG", callables.read_picture, _PICTURE, largest=LARGEST_PICTURE * 3)
    add("GET", f"/pictures/{NAME}", "How one of them was made, and the settings for another like it", callables.recall)
    add("GET", "/words", "What a prompt may name: networks, embeddings, trigger words", None if words is None else lambda: {"words": list(words())})
    if callables.library is not None:
        _add_library(add, callables.library)


def _add_library(add: Callable[..., None], library: LibraryCalls) -> None:
    add("GET", "/library/trash", "What lies in the trash, newest first", lambda: {"trash": list(library.trash())})
    add("GET", "/library/jobs", "The library's work in the background, oldest first", library.jobs)
    add("POST", "/library/jobs/stop", "Stop a piece of work, or all of it", lambda body: library.stop((body or {}).get("job")), _JOB, required=False)
    for action in library.actions:
        largest = LARGEST_PICTURE if any(setting.name == "image" for setting in action.settings) else LARGEST_BODY
        more = " Gives a job; GET library/jobs tells how it stands." if action.long else ""
        add("POST", f"/library/{action.name}", action.help + more, functools.partial(library.run, action.name), action.json_schema(), largest=largest)


def _picture_schema(record: Sequence[Setting], adapters: bool = False) -> dict[str, Any]:
    properties = {setting.name: setting.json_schema() for setting in record}
    if adapters:
        unit = {setting.name: setting.json_schema() for setting in section_settings(Unit)}
        unit |= {"picture": {"type": "string", "description": "What it looks at: a PNG or JPEG in base64"},
                 "pictures": {"type": "array", "items": {"type": "string"}, "description": "One for each picture of the batch, over and over"},
                 "mask": {"type": "string", "description": "Where it acts: white on black, in base64"}}
        properties["units"] = {"type": "array", "description": "One object for each T2I-Adapter",
                               "items": {"type": "object", "additionalProperties": False, "properties": unit}}
        properties["fuser"] = {"type": "string", "default": "auto", "description": "The CoAdapter fuser's name; auto: one that fits; or none"}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def passwords(given: str | Mapping[str, str]) -> Callable[[str, str], bool]:
    """The `authorise` for `add_routes` from {user: password}, or from the text of the host's `--api-auth`, "user:password,user2:password2"."""
    known = dict(pair.strip().split(":", 1) for pair in given.split(",") if ":" in pair) if isinstance(given, str) else dict(given)

    def authorise(user: str, password: str) -> bool:
        expected = known.get(user)
        return expected is not None and secrets.compare_digest(password.encode(), expected.encode())

    return authorise


class RefusedError(LycoError, PermissionError):
    """A request that may not be answered; carries its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class BodyError(LycoError, ValueError):
    """A request's body that can't be read."""


def _endpoint(
    work: Callable[..., Any], takes_name: bool, largest_body: int | None, needs_body: bool, authorise: Callable[[str, str], bool] | None
) -> Callable[..., Any]:
    async def answer(request: Request) -> JSONResponse:
        try:
            _refuse_foreign_origin(request)
            arguments = [request.path_params["name"]] if takes_name else []
            if largest_body is not None:
                arguments.append(await _read_body(request, needs_body, largest_body))
            return JSONResponse(dict(await run_in_threadpool(work, *arguments)))
        except LycoError as error:
            return _error_response(error)

    if authorise is None:
        return answer

    async def answer_known_users(request: Request, credentials: HTTPBasicCredentials | None = Depends(HTTPBasic(auto_error=False))) -> JSONResponse:  # noqa: B008
        if credentials is None or not authorise(credentials.username, credentials.password):
            return _error_response(RefusedError(401, "wrong or missing user name and password: send those of the host's --api-auth or --gradio-auth"))
        return await answer(request)

    return answer_known_users


def _refuse_foreign_origin(request: Request) -> None:
    """Raises where a page of another site asks."""
    reason = foreign(request.headers)
    if reason is not None:
        raise RefusedError(403, reason)


def foreign(headers: Mapping[str, str]) -> str | None:
    """Why a request is that of another site's page, or None: a browser names a page's origin in `Origin` or `Sec-Fetch-Site`; programs send neither.

    Args:
        headers: by name in small letters.
    """
    origin = headers.get("origin")
    if origin is not None and not _is_of(origin, headers.get("host", "")):
        return f"origin {origin!r} may not use this server: open the page from the server itself"
    if origin is None and headers.get("sec-fetch-site") == "cross-site":
        return "a page of another site may not use this server: open the page from the server itself"
    return None


def _is_of(origin: str, host: str) -> bool:
    """Whether an origin ("http://name:port", or "null" for a page that has none) is that of the asked host ("name:port").

    The scheme only fills in the port: a proxy in front may speak https for us.
    """
    scheme = origin.partition(":")[0]
    if scheme not in _DEFAULT_PORTS:
        return False
    try:
        parts, own = urlsplit(origin), urlsplit(f"{scheme}://{host}")
        default = _DEFAULT_PORTS[scheme]
        return parts.hostname is not None and (parts.hostname, parts.port or default) == (own.hostname, own.port or default)
    except ValueError:
        return False


async def _read_body(request: Request, needed: bool, largest: int) -> Mapping[str, Any] | None:
    """The posted JSON object; None for an empty body, where it may be left out.

    Raises:
        BodyError: too large, no JSON, or no object.
    """
    text = bytearray()
    async for piece in request.stream():
        text += piece
        if len(text) > largest:
            advice = "the settings alone" if largest == LARGEST_BODY else "a smaller picture, or fewer files at once"
            raise BodyError(f"the request's body is larger than {largest} bytes: post {advice}")
    if not needed and not text.strip():
        return None
    try:
        body = json.loads(text)
    except ValueError as error:
        raise BodyError(f"the request's body is not JSON ({error}): post one JSON object") from None
    if not isinstance(body, dict):
        raise BodyError(f"the request's body is a JSON {type(body).__name__}: post one JSON object")
    return body


def _error_response(error: LycoError) -> JSONResponse:
    if isinstance(error, RefusedError):
        status = error.status
    else:
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 400)
    headers = {"WWW-Authenticate": "Basic"} if status == 401 else None
    return JSONResponse({"error": str(error)}, status_code=status, headers=headers)


_STATUS = ((BusyError, 409), (UnknownNetworkError, 404), (UnknownPresetError, 404))
_ERROR = {
    "description": "What was wrong, where, and what to do",
    "content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}}},
}
_NAME_DESCRIBED = {
    "name": "name", "in": "path", "required": True, "schema": {"type": "string"},
    "description": "The name as in the list, with its folder where two have one name. To look at a network, its alias or hash will do too.",
}
_JOB = {
    "type": "object", "additionalProperties": False,
    "properties": {"job": {"type": "integer", "description": "Its number; left out: all that run and wait"}},
}
_PICTURE = {
    "type": "object", "additionalProperties": False, "required": ["image"],
    "properties": {"image": {"type": "string", "description": "The PNG's bytes in base64"}},
}
_PREPROCESS = {
    "type": "object",
    "properties": {
        "picture": {"type": "string", "description": "The picture to make a control map of: a PNG or JPEG in base64. palette and skeleton need none"},
        "width": {"type": "integer", "minimum": 8, "maximum": 4096, "description": "Of the map, in pixels; left out: the picture's"},
        "height": {"type": "integer", "minimum": 8, "maximum": 4096, "description": "Of the map, in pixels; left out: the picture's"},
        **{setting.name: setting.json_schema() for setting in section_settings(Unit) if setting.name in (
            "adapter", "preprocessor", "processor_resolution", "threshold_a", "threshold_b", "palette", "keypoints", "resize_mode")},
        "folder": {"type": "string", "description": "For captions: a folder of pictures, on the machine that this server runs on"},
        "interrogator": {"type": "string", "enum": ["blip", "deepbooru"], "default": "blip", "description": "What looks at them: sentences, or tags"},
    },
}
_REMARKS = {
    "type": "object", "additionalProperties": False,
    "properties": {
        "description": {"type": "string", "description": "Stands on the card"},
        "sd version": {"type": "string", "enum": ["SD1", "SD2", "SDXL", "Unknown"], "description": "The base model that it is for"},
        "activation text": {"type": "string", "description": "A click on the card writes it behind the tag"},
        "preferred weight": {"type": "number", "description": "Strength that a click on the card writes; 0 means none"},
        "negative text": {"type": "string", "description": "A click on the card writes it into the negative prompt"},
        "notes": {"type": "string", "description": "Whatever is worth keeping"},
    },
}
