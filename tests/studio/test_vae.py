import pytest
import torch
from safetensors.torch import save_file

from lib_lycoris.cli.train import make_backbone
from lib_lycoris.errors import CheckpointError
from lib_lycoris.studio import ldm
from lib_lycoris.studio.checkpoint import with_vae
from lib_lycoris.training.config import TrainConfig

from .tiny import make_modules, write_checkpoint


def other_vae():
    return make_modules(seed=4)[1]


def files_of(folder, form):
    """A file with the other autoencoder in that form."""
    state = other_vae().state_dict()
    if form == "checkpoint":
        return write_checkpoint(folder, make_modules(seed=4), "whole")
    path = folder / f"{form}.{'pt' if form == 'pickle' else 'safetensors'}"
    if form == "pickle":
        torch.save({"state_dict": {**ldm.vae_to_ldm(state), "loss.logvar": torch.zeros(())}}, path)
    else:
        save_file({name: value.contiguous() for name, value in (state if form == "diffusers" else ldm.vae_to_ldm(state)).items()}, path)
    return path


@pytest.mark.parametrize("form", ["original", "diffusers", "pickle", "checkpoint"])
def test_another_autoencoder_encodes_the_pictures_and_nothing_else_changes(tmp_path, model, form):
    config = TrainConfig.from_dict({"model": {"vae": str(files_of(tmp_path, form))}})
    backbone, own = make_backbone(model, config), make_backbone(model, TrainConfig())
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = backbone.encode_pictures(pictures, torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = other_vae().encode(pictures).latent_dist.sample(torch.Generator().manual_seed(3)) * model.latent_scale
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, own.encode_pictures(pictures, torch.Generator().manual_seed(3)), atol=1e-2)
    assert backbone.unet is model.unet and backbone.text_encoders == own.text_encoders and backbone.model.vae is not model.vae


def test_a_file_without_an_autoencoder_or_with_one_of_another_kind_is_refused(tmp_path, model):
    with pytest.raises(CheckpointError, match="does not exist"):
        with_vae(model, tmp_path / "none.safetensors")
    save_file({"something": torch.zeros(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match="autoencoder"):
        with_vae(model, tmp_path / "odd.safetensors")
