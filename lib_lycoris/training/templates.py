"""Lists of captions with a place for a word, of which each draw takes another one, so that the word learns what all of them have in common."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DatasetError, shown

_SUBJECT = (
    "a photo of {word}", "a picture of {word}", "a good picture of {word}", "a clear photo of {word}", "a close view of {word}", "a bright photo of {word}",
    "a dark photo of {word}", "one {word}", "the {word}", "this is {word}", "{word} alone", "{word} in the middle of the picture", "a small picture of {word}",
    "a plain picture of {word}", "a detailed image of {word}", "an image that shows {word}", "a snapshot of {word}", "{word}, seen from nearby",
)
_STYLE = (
    "a picture in the style of {word}", "an image in the style of {word}", "a painting in the style of {word}", "a drawing in the style of {word}",
    "artwork in the style of {word}", "{word} style", "a scene in {word} style", "a small picture in the style of {word}",
    "a colourful image in the style of {word}", "a dark image in the style of {word}",
    "a detailed picture in the style of {word}", "something painted by {word}", "as {word} would draw it",
)
_FILEWORDS = "{template}, {caption}"
_LISTS = {
    "subject": _SUBJECT, "style": _STYLE, "subject_filewords": tuple(_FILEWORDS.replace("{template}", line) for line in _SUBJECT),
    "style_filewords": tuple(_FILEWORDS.replace("{template}", line) for line in _STYLE),
}
LISTS = tuple(_LISTS)
"""The names of our own lists."""
_FOREIGN = {"[name]": "{word}", "[filewords]": "{caption}", "{}": "{word}"}
"""How the WebUI's own lists and diffusers' spell the places."""
_PLACE = re.compile(r"\{(word|caption|concept|name)\}")
_NAMED = re.compile(r"\{([^{}]*)\}")


def read_templates(name: str) -> tuple[str, ...]:
    """The lines of a list: one of ours by its name, or a text file's; each has {word} in it.

    Raises:
        DatasetError: there is no such file, it can't be read, it is empty, or a line can't be used.
    """
    if name in _LISTS:
        return _LISTS[name]
    path = Path(name).expanduser()
    where = f"data.templates = {shown(name)}"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{where}: {error.strerror or error}; give a text file, or one of {', '.join(_LISTS)}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: byte {error.start} is no UTF-8; save it as UTF-8") from error
    lines = tuple(_read_line(where, line.strip()) for line in text.splitlines() if line.strip() and not line.startswith("#"))
    if not lines:
        raise DatasetError(f"{where}: the file has no line; write one template on each, as \"a photo of {{word}}\"")
    return lines


def fill_template(template: str, word: str, caption: str, concept: str | None, name: str) -> str:
    """The template with its places filled; commas that are left over where one was empty are taken away."""
    values = {"word": word, "caption": caption, "concept": concept or "", "name": name}
    text = _PLACE.sub(lambda match: values[match[1]], template)
    return " ".join(text.split()).strip(" ,") if not all(values[match[1]] for match in _PLACE.finditer(template)) else text


def _read_line(where: str, line: str) -> str:
    for foreign, own in _FOREIGN.items():
        line = line.replace(foreign, own)
    unknown = [match[0] for match in _NAMED.finditer(line) if not _PLACE.fullmatch(match[0])]
    if unknown:
        raise DatasetError(f"{where}: the line {shown(line, 60)} has {unknown[0]}; known are {{word}}, {{caption}}, {{concept}} and {{name}}")
    if "{word}" not in line:
        raise DatasetError(f"{where}: the line {shown(line, 60)} has no {{word}}; every line needs it")
    return line
