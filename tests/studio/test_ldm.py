import pytest
import torch

from lib_lycoris.studio import ldm

from .tiny import make_modules


@pytest.fixture(scope="module")
def modules():
    return make_modules()


def test_to_the_file_and_back_is_every_tensor_unchanged(modules):
    unet, vae, text = (module.state_dict() for module in modules)
    tensors = ldm.make_checkpoint(unet, vae, text)
    for state, again in ((unet, ldm.unet_to_diffusers(ldm.read_part(tensors, ldm.UNET))),
                         (vae, ldm.vae_to_diffusers(ldm.read_part(tensors, ldm.VAE))),
                         (text, ldm.text_to_transformers(ldm.read_part(tensors, ldm.TEXT)))):
        assert set(state) == set(again)
        assert all(torch.equal(state[name], again[name]) for name in state)


def test_the_sizes_are_read_back_from_the_shapes(modules):
    unet, vae, text = modules
    tensors = ldm.make_checkpoint(unet.state_dict(), vae.state_dict(), text.state_dict())
    for config, module in ((ldm.unet_config(ldm.read_part(tensors, ldm.UNET), heads=4), unet),
                           (ldm.vae_config(ldm.read_part(tensors, ldm.VAE)), vae)):
        assert {key: tuple(value) if isinstance(value, list) else value for key, value in config.items() if key != "sample_size"} \
            == {key: tuple(v) if isinstance(v := module.config[key], list) else v for key in config if key != "sample_size"}
    config = ldm.text_config(text.state_dict(), {"num_attention_heads": 4})
    assert {key: getattr(text.config, key) for key in config} == config


def test_known_names_of_the_original_layout_are_in_the_tables():
    unet, vae = dict(ldm.unet_table()), dict(ldm.vae_table())
    assert unet["output_blocks.2.1.conv"] == "up_blocks.0.upsamplers.0.conv"
    assert unet["output_blocks.5.2.conv"] == "up_blocks.1.upsamplers.0.conv"
    assert unet["input_blocks.9.0.op"] == "down_blocks.2.downsamplers.0.conv"
    assert unet["input_blocks.11.0.skip_connection"] == "down_blocks.3.resnets.1.conv_shortcut"
    assert unet["output_blocks.11.1"] == "up_blocks.3.attentions.2"
    assert "input_blocks.10.1" not in unet
    assert vae["decoder.up.3.block.2.conv1"] == "decoder.up_blocks.0.resnets.2.conv1"
    assert vae["decoder.up.1.upsample.conv"] == "decoder.up_blocks.2.upsamplers.0.conv"
    assert vae["encoder.mid.attn_1.proj_out"] == "encoder.mid_block.attentions.0.to_out.0"


def test_a_file_holds_projections_of_the_autoencoder_as_convolutions_and_positions(modules):
    unet, vae, text = (module.state_dict() for module in modules)
    tensors = ldm.make_checkpoint(unet, vae, text)
    assert tensors["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)
    assert tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"].shape == (1, 77)


def test_a_text_model_reads_with_and_without_the_level(modules):
    state = modules[2].state_dict()
    with_level = {f"text_model.{name}": tensor for name, tensor in state.items()}
    assert set(ldm.text_to_transformers(with_level)) == set(ldm.text_to_transformers(state)) == set(state)
    assert set(ldm.text_to_transformers(state, "text_model.")) == set(with_level)
