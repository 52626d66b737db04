"""What the Train tab does, as plain functions of plain values; both hosts give the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]
"""A training config as nested mappings."""


@dataclass(frozen=True)
class TrainPage:
    """What the Train tab does and shows; the functions raise a `LycoError` where they can't. A host gives those it has.

    Attributes:
        start: takes a training config as nested mappings and starts it.
        stop: asks the running training to save and end.
        state: gives the state of the training that runs or ran last (`training.job_state.JobState.to_dict`).
        check: takes a config, gives in words what would happen.
        defaults: what fields start with, by key, where that differs from the config's own defaults.
        fixed: keys that the host decides; they get no field.
        pause: asks the running training to save and free the model.
        resume: goes on with the training that is paused, or was stopped, interrupted or failed last; without these two there is no such button.
        preview: asks the running training for preview pictures now.
        thumbnail: takes the path of a preview that the state names, gives a small JPEG's bytes.
        pictures: takes a config, gives {"pictures": […], "problems": […]} of its dataset (`training.desk.Desk`); picture: one of them as an image;
            caption: writes one's caption; upload: takes a name and (file name, bytes) pairs, gives {"folder", "written", "problems"}; sample: takes a kind of
            network, gives {"folder", "about", "settings": by key} of its sample pictures.
        presets: gives them as {"name", "about", "values", "own"}; save_preset, delete_preset: the user's own.
        import_settings: takes a file's text, gives {"values": by key, "notes": lines}; export: takes a config, gives {"toml", "command"}.
        config: gives the config of the training that is under way, or was last; None where there was none.
        unknown: for each kind of network the keys that it does not know, whose fields are hidden.
        polls: whether the page may ask for the state by itself; else a script of the host's page presses a button.
    """

    start: Callable[[Config], Any]
    stop: Callable[[], Any]
    state: Callable[[], Mapping[str, Any]]
    check: Callable[[Config], Sequence[str]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Sequence[str] = ("model.checkpoint",)
    polls: bool = True
    pause: Callable[[], Any] | None = None
    resume: Callable[[], Any] | None = None
    preview: Callable[[], Any] | None = None
    thumbnail: Callable[[str], bytes] | None = None
    pictures: Callable[[Config], Mapping[str, Any]] | None = None
    picture: Callable[[Config, str, int], Any] | None = None
    caption: Callable[[Config, str, str], Mapping[str, Any]] | None = None
    upload: Callable[[str, list[tuple[str, bytes]]], Mapping[str, Any]] | None = None
    sample: Callable[[str], Mapping[str, Any]] | None = None
    presets: Callable[[], Sequence[Mapping[str, Any]]] | None = None
    save_preset: Callable[[str, Config], Any] | None = None
    delete_preset: Callable[[str], Any] | None = None
    import_settings: Callable[[str], Mapping[str, Any]] | None = None
    export: Callable[[Config], Mapping[str, str]] | None = None
    config: Callable[[], Config | None] | None = None
    unknown: Mapping[str, Sequence[str]] = field(default_factory=dict)
