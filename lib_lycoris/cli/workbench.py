"""What the studio's page and routes do: one model, one training at a time, pictures in between."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import BusyError, ConfigError, LycoError
from ..training.config import TrainConfig
from ..training.desk import Desk
from ..training.fence import Fence
from ..training.job import Leads, TrainJob
from ..training.pace import Paces
from ..training.result import TrainResult
from .adapters import Adapters, channels_of
from .units import requested_units, sample_adapters

OUTPUTS = Path("outputs")
_CACHE_BYTES = 1 << 30
_STATES_ENDING = "-states"
"""Of the folders where training.checkpoint keeps resumable states, which are no networks."""

Tell = Callable[[float, str], None]
"""(share done, words)."""


def tell_nobody(share: float, words: str) -> None:
    """For callers that show no progress."""


class Workbench:
    """The studio's model and what is done with it. The model is loaded in the background; who needs it waits.

    Args:
        checkpoint: a file; None: the embedded one.
        folders: where networks are looked for.
        outputs: where pictures go, and datasets and presets, each to a folder of their own.
        embeddings: where embeddings are looked for; None: where networks are.
        adapters: where adapters are looked for; None: where pictures go.
        clip_vision: CLIP's picture encoder, a file or a folder with one; None: looked for among the adapters.
    """

    def __init__(self, checkpoint: str | None = None, folders: list[str] | None = None, outputs: Path = OUTPUTS,
                 embeddings: list[str] | None = None, adapters: list[str] | None = None, clip_vision: str | None = None) -> None:
        self.checkpoint, self.outputs = checkpoint, outputs
        self._folders = [Path(folder) for folder in folders or [str(outputs)]]
        self._embedding_folders = [Path(folder) for folder in embeddings] if embeddings else list(self._folders)
        self._home = (outputs / "lyco").resolve()
        self._lock = threading.Lock()
        self._loaded = threading.Event()
        self._model: Any = None
        self._networks: Any = None
        self._error: LycoError | None = None
        self._stop_generating = threading.Event()
        self._naming, self._named = threading.Lock(), 0  # the moment of the last pictures' names, in milliseconds: each request's are its own
        self._catalogue = self._make_catalogue()
        self._shelf = self._make_shelf()
        self._embeddings = self._make_embeddings()
        self.adapters = Adapters(adapters or [outputs], lambda: channels_of(self._model), sample_adapters(checkpoint), clip_vision)
        self.library = self._make_library()
        self.job = TrainJob(self._train, self._lock, self._home / "training.json")
        self._paces = Paces(self._home / "paces.json")
        self._fence = Fence(lambda: [self.outputs, *self._folders])
        self.desk = Desk(self._home, self._fence, TrainConfig.from_dict, self.job, _sample_set)

    def load(self) -> None:
        """Loads the model; a failure is kept for everybody who waits, and for `error`."""
        from ..studio.checkpoint import load_checkpoint

        try:
            self._model = load_checkpoint(self.checkpoint)
            self._networks = self._make_networks()
        except LycoError as error:
            self._error = error
        finally:
            self._loaded.set()

    @property
    def error(self) -> LycoError | None:
        """Why the model could not be loaded."""
        return self._error

    def title(self) -> str:
        """A line on what the studio works with, or that it is still loading."""
        if not self._loaded.is_set():
            return "Loading the checkpoint, a moment …"
        if self._model is None:
            return f"No checkpoint: {self._error}"
        return f"Checkpoint: {self._model.name}, {self._model.side} px, on {self._model.device} · networks and pictures go to {self.outputs.resolve()}"

    def side(self) -> int | None:
        """Pixels of the pictures that the model was made for; None while it is not loaded."""
        return None if self._model is None else self._model.side

    def model(self) -> Any:
        """The model, once it is there.

        Raises:
            LycoError: it can't be loaded.
        """
        self._loaded.wait()
        if self._model is None:
            raise self._error or ConfigError("the checkpoint could not be loaded: the console says why")
        return self._model

    # ---------------------------------------------------------------- networks

    @property
    def shelf(self) -> Any:
        """The networks on disk, without the states that trainings keep beside theirs."""
        return self._shelf

    @property
    def embeddings(self) -> Any:
        """The embeddings on disk."""
        return self._embeddings

    def _make_embeddings(self) -> Any:
        from ..library.embedding_shelf import EmbeddingShelf

        return EmbeddingShelf(lambda: self._embedding_folders)

    def network_names(self) -> list[str]:
        """Names of the networks on disk now, as they stand in a tag."""
        return [network["name"] for network in self.library.rows("networks")]

    def _make_catalogue(self) -> Any:
        from ..library.catalogue import Catalogue

        return Catalogue(self._folders)

    def _make_shelf(self) -> Any:
        from ..library.shelf import Shelf
        from ..tools.inspect import inspect

        return Shelf(lambda: self._catalogue, lambda: self._folders, leave_out=lambda path: path.parent.name.endswith(_STATES_ENDING),
                     inspect=lambda path: inspect(path).as_json())

    def _make_library(self) -> Any:
        from ..library.adapter_files import AdapterFiles
        from ..tools.library import Library

        return Library({"networks": self._shelf, "embeddings": self._embeddings, "adapters": AdapterFiles(lambda: self.adapters.preparation.shelf)})

    def _make_networks(self) -> Any:
        from ..generation import Generation
        from ..library.cache import NetworkCache
        from ..patching.session import Session

        return Generation(self._catalogue, NetworkCache(_CACHE_BYTES), Session(self._model.unet, [self._model.text_encoder]))

    def _look_into(self, folder: Path) -> None:
        """Looks for networks, embeddings and adapters in that folder too."""
        if not any(folder.resolve().is_relative_to(known.resolve()) for known in self._folders):
            self._folders.append(folder)
            self._catalogue = self._make_catalogue()
            self._networks.catalogue = self._catalogue
        if not any(folder.resolve().is_relative_to(known.resolve()) for known in self._embedding_folders):
            self._embedding_folders.append(folder)
        adapters = self.adapters.preparation.shelf
        if not any(folder.resolve().is_relative_to(known.resolve()) for known in adapters.folders):
            adapters.folders.append(folder)

    # ---------------------------------------------------------------- generate

    def generate(self, values: Mapping[str, Any], tell: Tell = tell_nobody, wait: bool = True) -> dict[str, Any]:
        """Pictures, written to disk.

        Args:
            values: of studio.generate.GenerateSettings; size is the checkpoint's own where nothing is said. Beside them "units": a list of mappings, one
                for each adapter, with a unit's fields and its "picture" or "pictures" and "mask" in base64; and "fuser".
            tell: told how far it is.
            wait: for a training's end; else it is an error.

        Returns:
            {"pictures": [{"path", "seed", "infotext", "maps": paths of control maps}], "problems": [line], "interrupted": bool}

        Raises:
            LycoError: a bad value, no model, a training is under way.
        """
        tell(0, "Waiting for the checkpoint to be loaded")
        model = self.model()
        more = {name: values[name] for name in ("units", "fuser") if name in values}
        settings = self._generate_settings({name: value for name, value in values.items() if name not in more})
        units = requested_units(more.get("units", []))
        self._stop_generating.clear()
        self._take_model(tell, wait)
        try:
            from ..studio.generate import generate

            pictures = generate(model, settings, self._networks, lambda step, count, _: tell((step + 1) / count, f"Step {step + 1} of {count}"),
                                self._stop_generating.is_set, embeddings=self._embeddings.vectors(), units=units, preparation=self.adapters.preparation,
                                fuser=str(more.get("fuser", "auto")))
        finally:
            self._lock.release()
        if units:
            from ..prompt.infotext import parse_infotext

            self._kept().keep(units, parse_infotext(pictures[0].infotext).fields)
        return {"pictures": self._write(pictures), "problems": list(pictures[0].problems), "interrupted": pictures[0].interrupted}

    def stop_generating(self) -> None:
        """Asks a running generation to end with what it has, and a waiting one to give up."""
        self._stop_generating.set()

    def _generate_settings(self, values: Mapping[str, Any]) -> Any:
        from ..setting import section_settings
        from ..studio.generate import GenerateSettings

        known = [setting.name for setting in section_settings(GenerateSettings)]
        for name in values:
            if name not in known:
                raise ConfigError(f"unknown key {name!r}; known are {', '.join(known)}")
        side = self.model().side
        return GenerateSettings(**{"width": side, "height": side, **values})

    def _take_model(self, tell: Tell, wait: bool) -> None:
        """Returns once the model is ours alone."""
        while not self._lock.acquire(timeout=0.5 if wait else 0):
            state = self.job.state()
            training = state.busy and state.phase != "paused"
            words = f"training {state.name!r} is under way (step {state.step} of {state.steps})" if training else "other pictures are being generated"
            if not wait:
                raise BusyError(f"{words}: wait for its end, or {'pause or ' if training else ''}stop it")
            if self._stop_generating.is_set():
                raise BusyError(f"no picture was made: {words}")
            tell(0, f"Waiting: {words}." + (" Pause or stop it in the Train tab to go first." if training else ""))

    def _write(self, pictures: list[Any]) -> list[dict[str, Any]]:
        from ..studio.picture import Picture, write_png

        with self._naming:
            self._named = max(time.time_ns() // 1_000_000, self._named + 1)
            seconds, thousandths = divmod(self._named, 1000)
        stamp = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(seconds))}-{thousandths:03}"
        written = []
        for place, picture in enumerate(pictures):
            path = self.outputs / "pictures" / f"{stamp}-{place}-{picture.seed}.png"
            write_png(path, picture)
            # in a folder of their own: they are no pictures that could be made again
            maps = [self.outputs / "control-maps" / f"{path.stem}-{number}.png" for number in range(1, len(picture.maps) + 1)]
            for beside, made in zip(maps, picture.maps, strict=True):
                write_png(beside, Picture(made, "", picture.seed))
            written.append({"path": str(path.resolve()), "seed": picture.seed, "infotext": picture.infotext, "maps": [str(each.resolve()) for each in maps]})
        return written

    def pictures(self, count: int = 24) -> list[dict[str, Any]]:
        """The newest pictures that were made, also before this start."""
        return self._history().rows(count)

    def recall(self, name: str) -> dict[str, Any]:
        """How one of them was made: {"infotext", "settings", "units", "fuser", "problems"}; pictures of units are paths.

        Raises:
            ConfigError: there is none of that name, or it holds no settings.
        """
        return self._recalled(self._history().find(name))

    def read_settings(self, data: bytes) -> dict[str, Any]:
        """The same of a PNG's bytes.

        Raises:
            ConfigError: it is no PNG, or holds no settings.
        """
        return self._recalled(data)

    def _recalled(self, source: bytes | Path) -> dict[str, Any]:
        from ..studio.recall import read_infotext, recall

        return recall(read_infotext(source), self._checkpoint_name(), self._kept(), self.adapters.preparation.shelf.find).to_dict()

    def read_picture(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The same for {"image": base64}.

        Raises:
            ConfigError: that is no base64, no PNG, or holds no settings.
        """
        try:
            text = str(values.get("image", ""))
            data = base64.b64decode(text.partition("base64,")[2] or text, validate=True)
        except ValueError as error:
            raise ConfigError(f"image is not base64 ({error}): send a PNG's bytes") from error
        return self.read_settings(data)

    def words(self) -> list[dict[str, str]]:
        """What a prompt may name: {"kind", "name", "insert", "about"}; of embeddings those that fit the checkpoint."""
        found, base = [], None if self._model is None else self._model.base_model
        for row in self.library.rows("networks"):
            if row["tag"] and not row["problem"]:
                about = " ".join(str(part) for part in (row["kind"], row["rank"]) if part)
                found.append({"kind": "network", "name": row["name"], "insert": row["tag"], "about": about})
                triggers = (word.strip() for word in (row["trigger_phrase"] or "").split(","))
                found += [{"kind": "trigger", "name": word, "insert": word, "about": f"calls {row['name']}"} for word in triggers if word]
        rows = (row for row in self.embeddings.rows() if not row["problem"] and base in (None, row["base_model"]))
        found += [{"kind": "embedding", "name": row["name"], "insert": row["name"], "about": f"embedding, {_vectors(row['vectors'])}"} for row in rows]
        return found

    def _kept(self) -> Any:
        from ..studio.kept import Kept

        return Kept(self.outputs / "control-pictures")

    def _history(self) -> Any:
        from ..studio.recall import PictureFolder

        return PictureFolder(self.outputs / "pictures")

    def _checkpoint_name(self) -> str | None:
        return None if self._model is None else str(self._model.name)

    # ---------------------------------------------------------------- train

    def train(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Starts a training; gives its state.

        Raises:
            LycoError: a bad config, no folder with pictures, no model, another training is under way.
        """
        from ..training.dataset import check_folders

        config = self._config(values)
        check_folders(config.data)
        return self.job.start(config).to_dict()

    def check(self, values: Mapping[str, Any]) -> list[str]:
        """In words, what a training would do; with an estimate of memory where nobody else uses the model just now."""
        from ..training.dataset import check_folders
        from ..training.preflight import check_training

        config = self._config(values)
        check_folders(config.data)
        backbone, free = self._backbone(config), self._lock.acquire(blocking=False)
        try:
            return check_training(config, backbone, self.model().side, free, self._paces.seconds_a_step(config, backbone)).lines()
        finally:
            if free:
                self._lock.release()

    def defaults(self) -> dict[str, Any]:
        """What fields of a page start with, by key, where it differs from the config's own defaults."""
        return {"output.folder": str(self.outputs)}

    def state(self) -> dict[str, Any]:
        """How the training stands that is under way, or was last."""
        return self.job.state().to_dict()

    def stop(self) -> dict[str, Any]:
        """Asks the training to save and end; gives its state."""
        return self.job.stop().to_dict()

    def preview(self) -> dict[str, Any]:
        """Asks the training for preview pictures after the step it is in; gives its state."""
        return self.job.preview().to_dict()

    def pause(self) -> dict[str, Any]:
        """Asks the training to save and to leave the model to pictures until it is resumed; gives its state."""
        return self.job.pause().to_dict()

    def resume(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Goes on with a training; gives its state.

        Args:
            values: a config, to go on from its newest saved state; None: the training that is paused, or was stopped or failed last.

        Raises:
            LycoError: a bad config, no model, another training is under way, or there is nothing to resume.
        """
        return (self.job.start(self._config(values), resume=True) if values else self.job.resume()).to_dict()

    def _config(self, values: Mapping[str, Any]) -> TrainConfig:
        config = TrainConfig.from_dict(values)
        wanted = config.model.checkpoint
        if wanted is not None and (self.checkpoint is None or Path(wanted).resolve() != Path(self.checkpoint).resolve()):
            raise ConfigError(f"model.checkpoint = {wanted}: this studio works with {self.checkpoint or 'the embedded one'}; leave it out, "
                              "or start the studio with --checkpoint")
        self._fence.check(config)
        return config

    def _backbone(self, config: TrainConfig) -> Any:
        from .train import make_backbone

        return make_backbone(self.model(), config)

    def _train(self, config: TrainConfig, leads: Leads) -> TrainResult:
        from ..training.loop import train

        backbone = self._backbone(config)
        self._look_into(Path(config.output.folder))
        result = train(config, backbone, **leads.for_train())
        state = self.job.state()
        self._paces.note(config, backbone, state.step, state.seconds)
        return result


def _vectors(count: int) -> str:
    return f"{count} vector{'s' if count != 1 else ''}"


def _sample_set(kind: str) -> Any:
    from ..studio.world.samples import sample_set

    return sample_set(kind)
