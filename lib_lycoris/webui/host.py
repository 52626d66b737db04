"""What the WebUI has, in plain values: its model's trees, its folders, its built-in networks. The only place that knows where the host keeps them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from modules import hashes, patches, sd_models, sd_unet, shared
from torch import nn

from lib_lycoris.errors import CheckpointError, ConfigError, NetworkFileError, shown
from lib_lycoris.files.safetensors import read_header
from lib_lycoris.patching.places import find_places


@dataclass(frozen=True)
class Trees:
    """The module trees that networks act on.

    Attributes:
        unet: the denoiser.
        text_encoders: te1, te2.
    """

    unet: nn.Module
    text_encoders: tuple[nn.Module, ...]

    def identity(self) -> tuple[int, ...]:
        """Values that differ as soon as any module of the trees is another one."""
        return tuple(id(module) for tree in (self.unet, *self.text_encoders) for module in tree.modules())


def loaded_model() -> Any | None:
    """The model that the next picture is made with, or None.

    Never starts a load, as `shared.sd_model` would; that also waits for a lock that a load in another thread holds.
    """
    return sd_models.model_data.sd_model


def loaded_checkpoint() -> Any:
    """The host's description of the checkpoint that is loaded, or None; two equal ones are the same file."""
    return getattr(loaded_model(), "sd_checkpoint_info", None)


def is_loaded(info: Any) -> bool:
    """Whether the checkpoint with this description is loaded; the host makes new descriptions whenever it looks through its folders."""
    loaded = loaded_checkpoint()
    return loaded is not None and loaded.filename == info.filename


def find_checkpoint(name: str | None) -> Any:
    """The host's description of the checkpoint with that name, title, hash or path; of the one that the next picture is made with for None.

    Raises:
        ConfigError: there is none, or none that the name means.
    """
    if name is None:
        try:
            return loaded_checkpoint() or sd_models.select_checkpoint()
        except FileNotFoundError as error:
            raise ConfigError("the WebUI has no checkpoint: put one into models/Stable-diffusion") from error
    same = [info for info in sd_models.checkpoints_list.values() if os.path.abspath(info.filename) == os.path.abspath(name)]
    found = same[0] if same else sd_models.checkpoint_aliases.get(name)
    if found is None:
        raise ConfigError(f"model.checkpoint = {shown(name)}: the WebUI knows no such checkpoint; leave it out for the one that is loaded")
    return found


def find_loaded(name: str | None) -> Any:
    """The host's description of the checkpoint that is loaded.

    Raises:
        ConfigError: none is, or another one than the name means.
    """
    loaded = loaded_checkpoint()
    if loaded is None or (name is not None and not is_loaded(find_checkpoint(name))):
        raise ConfigError(f"{shown(name or 'a checkpoint')} is not loaded: choose it in the WebUI and make a picture, then look again")
    return loaded


def load_checkpoint(info: Any) -> Any:
    """The model of that checkpoint, loaded where another one was; the user's choice in the settings stays. Only while nobody else uses the model.

    Raises:
        CheckpointError: it can't be loaded.
    """
    sd_models.model_data.get_sd_model()  # waits for a load in another thread
    if not is_loaded(info):
        with sd_models.SkipWritingToConfig():
            sd_models.reload_model_weights(info=info)
    if not is_loaded(info):
        raise CheckpointError(f"the checkpoint {info.name_for_extra} could not be loaded: the console says why")
    return loaded_model()


def find_vae(name: str | None) -> str | None:
    """The file of an autoencoder, given as a path or as the host lists it; None for None. Where others reach the WebUI only what it lists is there.

    Raises:
        ConfigError: there is none.
    """
    if name is None:
        return None
    from modules import sd_vae

    path = sd_vae.vae_dict.get(name, name)
    if not os.path.isfile(path) or (open_to_others() and os.path.abspath(path) not in map(os.path.abspath, sd_vae.vae_dict.values())):
        raise ConfigError(f"model.vae = {shown(name)}: no such file, and the WebUI lists none of that name; leave it out for the one that is chosen")
    return path


def check_vae(model: Any, name: str) -> None:
    """Raises where a file holds no autoencoder for this model; the host would look only after it has taken the model apart, and leave it so.

    Raises:
        ConfigError: it can't be read, or holds something else.
    """
    from modules import sd_vae

    said = f"model.vae = {shown(name)}: "
    try:
        given = {key: tensor.shape for key, tensor in sd_vae.load_vae_dict(find_vae(name), "cpu").items()}
    except Exception as error:  # the host's readers raise whatever their libraries do
        # a pickle that it refuses: it printed why, and stumbles over the None that its reader gave
        why = "" if isinstance(error, AttributeError) else f" ({type(error).__name__}: {shown(error)})"
        raise ConfigError(f"{said}the WebUI can't read it as an autoencoder{why}; choose another file") from error
    wanted = {key: tensor.shape for key, tensor in model.first_stage_model.state_dict().items()}
    other = sorted(key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key))
    if other:
        raise ConfigError(f"{said}no autoencoder for this checkpoint: {len(other)} tensors are missing or others, as {shown(other[0])}; choose another file")


def half_precision(model: Any) -> bool:
    """Whether the model's weights are in half precision."""
    return next(model.model.diffusion_model.parameters()).dtype == torch.float16


def trees_of(model: Any) -> Trees:
    """The trees of a loaded model: SD 1.x, SD 2.x, SDXL and its refiner.

    Raises:
        CheckpointError: a model of another architecture.
    """
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    if unet is None or getattr(model, "is_sd3", False) or not hasattr(unet, "input_blocks"):
        kind = type(unet if unet is not None else model).__name__
        raise CheckpointError(f"networks can't be put on this checkpoint ({kind}), only on SD 1.x, SD 2.x and SDXL: choose such a one")
    if hasattr(model, "conditioner"):
        return Trees(unet, _sdxl_text_encoders(model.conditioner))
    wrapped = _wrapped(getattr(model, "cond_stage_model", None))
    found = _clip(wrapped) or _open_clip(wrapped)
    return Trees(unet, (found,) if found is not None else ())


def _sdxl_text_encoders(conditioner: Any) -> tuple[nn.Module, ...]:
    embedders = [_wrapped(embedder) for embedder in conditioner.embedders]
    te1 = next(filter(None, map(_clip, embedders)), None)
    te2 = next(filter(None, map(_open_clip, embedders)), None)
    if te2 is None:
        return (te1,) if te1 is not None else ()
    return (te1 if te1 is not None else nn.Identity(), te2)  # SDXL's refiner has the second one alone


def _wrapped(embedder: Any) -> Any:
    """The text encoder inside the host's wrapper for emphasis and long prompts."""
    return getattr(embedder, "wrapped", embedder)


def _clip(embedder: Any) -> nn.Module | None:
    found = getattr(embedder, "transformer", None)
    return found if isinstance(found, nn.Module) and hasattr(found, "text_model") else None


def _open_clip(embedder: Any) -> nn.Module | None:
    found = getattr(embedder, "model", None)
    return found if isinstance(found, nn.Module) and hasattr(found, "transformer") else None


def check_reachable(what: str) -> None:
    """Raises where another program runs in the UNet's place.

    Raises:
        CheckpointError: it does.
    """
    problem = unreachable_unet(what)
    if problem is not None:
        raise CheckpointError(problem)


def unreachable_unet(what: str = "networks") -> str | None:
    """What the user must know where another program runs in the UNet's place (TensorRT, …), or None."""
    unet = sd_unet.current_unet
    if unet is None:
        return None
    label = getattr(getattr(unet, "option", None), "label", type(unet).__name__)
    return f"SD Unet {label!r} runs in the model's place, so {what} can't reach its layers: choose None under Settings, Stable Diffusion, SD Unet"


def network_folders() -> list[Path]:
    """The folders that hold networks, ours first; those of the built-in extension's flags where it set them."""
    models = Path(shared.models_path)
    lyco, lora = (getattr(shared.cmd_opts, flag, None) for flag in ("lyco_dir_backcompat", "lora_dir"))
    return [Path(folder) for folder in dict.fromkeys((str(lyco or models / "LyCORIS"), str(lora or models / "Lora")))]


def own_folder() -> Path:
    """Our own folder in the host's data folder: uploaded datasets, presets, what is known of the newest training. Not made."""
    return Path(shared.data_path) / "lycoris"


def open_to_others() -> bool:
    """Whether others may reach the WebUI who may not install extensions either: --listen, --share, … without --enable-insecure-extension-access."""
    return bool(getattr(shared.cmd_opts, "disable_extension_access", False))


def dataset_folders() -> list[str]:
    """The folders of --lycoris-datasets."""
    return list(getattr(shared.cmd_opts, "lycoris_datasets", None) or ())


def adapter_folder() -> Path:
    """The folder for T2I-Adapters."""
    return Path(shared.models_path, "T2I-Adapter")


def controlnet_folders() -> list[Path]:
    """The folders of ControlNet's models that there are: people keep T2I-Adapters among them."""
    told = getattr(shared.cmd_opts, "controlnet_dir", None)
    extension = Path(shared.models_path).parent / "extensions" / "sd-webui-controlnet" / "models"
    candidates = [Path(told)] if told else []
    return [folder for folder in (*candidates, Path(shared.models_path, "ControlNet"), extension) if folder.is_dir()]


def is_refiner(model: Any) -> bool:
    """Whether a loaded model is SDXL's refiner: its UNet has a depth more than SDXL's."""
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    return bool(getattr(model, "is_sdxl", False)) and len(getattr(unet, "channel_mult", ())) == 4


def base_model(model: Any) -> str | None:
    """"sd_v1", "sd_v2" or "sdxl_base_v1-0" of a loaded model; None for another kind, SDXL's refiner among them, and where none is loaded."""
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    if unet is None or is_refiner(model):
        return None
    kinds = (("is_sd1", "sd_v1"), ("is_sd2", "sd_v2"), ("is_sdxl", "sdxl_base_v1-0"))
    return next((name for flag, name in kinds if getattr(model, flag, False)), None)


def feature_channels(model: Any) -> tuple[int, ...] | None:
    """The channels at the places where an adapter's features are added; None where no model is loaded, or another kind."""
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    try:
        return None if unet is None else find_places(unet).channels
    except ConfigError:
        return None


def embedding_folder() -> Path:
    """The folder in which the host looks for embeddings."""
    return Path(shared.cmd_opts.embeddings_dir)


def serves_api() -> bool:
    """Whether the host was started with its API."""
    return bool(getattr(shared.cmd_opts, "api", False) or getattr(shared.cmd_opts, "nowebui", False))


def api_credentials() -> dict[str, str] | None:
    """Who may use the routes, {user: password}: those of --api-auth, else those of --gradio-auth and --gradio-auth-path, so that a WebUI with a password is
    never open at our routes; None where nobody is asked.

    Raises:
        OSError: the file of --gradio-auth-path can't be read.
    """
    texts = [getattr(shared.cmd_opts, "api_auth", None) or ""]
    if not texts[0]:
        texts = [getattr(shared.cmd_opts, "gradio_auth", None) or ""]
        path = getattr(shared.cmd_opts, "gradio_auth_path", None)
        if path:
            texts += Path(path).read_text(encoding="utf-8").splitlines()
    pairs = (pair.strip().split(":", 1) for text in texts for pair in text.split(",") if ":" in pair)
    return dict(pairs) if any(text.strip() for text in texts) else None  # a flag that names nobody lets nobody in


def short_hash(path: Path) -> str | None:
    """The first 12 hex digits of the hash by which the built-in extension knows a file too.

    None where the user wants no hashing or the file can't be read. The host keeps hashes on disk, so a file is read for it only once.
    """
    safetensors = path.suffix.lower() == ".safetensors"
    try:
        known = read_header(path).metadata.get("sshs_model_hash") if safetensors else None
        return (known or hashes.sha256(str(path), f"lora/{path.stem}", use_addnet_hash=safetensors) or "")[:12] or None
    except (NetworkFileError, OSError):
        return None


def make_settle() -> Callable[[nn.Module], Hashable] | None:
    """The function that has the built-in extension put its networks on a layer, or take them off, before ours act; None where it isn't active.

    It merges into a layer's weights at that layer's forward, and backs them up before. Called here first, it sees its own and the model's tensors
    only, and at the forward itself finds nothing left to do. The function gives a value that changes whenever the set of its networks does; `token` of
    it gives, without looking at a layer, one that is the same as long as nothing is to do on layers that it has seen.
    """
    builtin: Any = sys.modules.get("networks")
    if not hasattr(builtin, "network_apply_weights") or patches.original("lora_patches", nn.Linear, "forward") is None:
        return None

    def settle(module: nn.Module) -> Hashable:
        if getattr(module, "network_layer_name", None) is None:
            return ()
        with torch.no_grad():  # it copies into parameters that may require gradients
            if shared.opts.lora_functional and not isinstance(module, nn.MultiheadAttention):
                if builtin.loaded_networks:  # at the forward it would copy its backup into our merged weight
                    builtin.network_restore_weights_from_backup(module)
                    builtin.network_reset_cached_weight(module)
            else:
                builtin.network_apply_weights(module)
        return getattr(module, "network_current_names", ())

    def token() -> Hashable:
        wanted = tuple((each.name, each.te_multiplier, each.unet_multiplier, getattr(each, "dyn_dim", None)) for each in builtin.loaded_networks)
        return bool(shared.opts.lora_functional), wanted

    settle.token = token
    return settle


def waiting_words() -> list[tuple[str, Any]]:
    """(word, embedding) of the embeddings packed with the built-in extension's networks that are on which it did not register, as their word was taken."""
    networks = getattr(sys.modules.get("networks"), "loaded_networks", ())
    packed = (item for network in networks for item in getattr(network, "bundle_embeddings", {}).items())
    return [(word, held) for word, held in packed if held.loaded is None]


def moves_layers(model: Any) -> bool:
    """Whether the host moves single parts of the UNet to the device and back while it runs (--lowvram)."""
    return bool(getattr(shared.cmd_opts, "lowvram", False) and getattr(model, "lowvram", False))


def make_base() -> Callable[[nn.Module], dict[str, torch.Tensor] | None] | None:
    """The function that gives a layer's tensors as they are without the built-in extension's networks; None where it isn't active.

    It keeps them in a backup for as long as its networks are merged; without a backup, or where what was merged is nothing, the layer's own are the
    ones. Valid after `settle`.
    """
    if make_settle() is None:
        return None

    def base(module: nn.Module) -> dict[str, torch.Tensor] | None:
        kept = getattr(module, "network_weights_backup", None)
        if kept is None or not getattr(module, "network_current_names", ()):
            return None
        names = ("in_proj_weight", "out_proj.weight", "out_proj.bias") if isinstance(module, nn.MultiheadAttention) else ("weight", "bias")
        weights = kept if isinstance(kept, tuple) else (kept,)
        found = dict(zip(names, (*weights, getattr(module, "network_bias_backup", None)), strict=True))
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    return base


def modified(path: Path) -> tuple[int, int] | None:
    """Time (nanoseconds) and size (bytes) of a file, or None where it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
