"""SD 2.x, which predicts velocity, and SDXL with its two text encoders, trained from pictures to the file, on small random ones of their structure."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from lib_lycoris.files.safetensors import read_metadata
from lib_lycoris.files.spelling import kohya_key
from lib_lycoris.library.load import open_network
from lib_lycoris.patching.session import patch
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.training import loop
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.draws import Draw
from lib_lycoris.training.material import Framing, PlainMaterial
from lib_lycoris.training.objective import Objective
from lib_lycoris.training.pictures import read_picture

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
LONG = ", ".join(f"thing number {number}" for number in range(40))
ARCHITECTURES = ("sd2", "sdxl")


def make_backbone(architecture):
    from lib_lycoris.studio.backbone import StudioBackbone
    from lib_lycoris.studio.sdxl import SDXLBackbone

    from ..studio.tiny_sd2_and_sdxl import make_sd2, make_sdxl

    return StudioBackbone(make_sd2()) if architecture == "sd2" else SDXLBackbone(make_sdxl())


@pytest.fixture(scope="module")
def backbones():
    return {name: make_backbone(name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def sd2(backbones):
    return backbones["sd2"]


@pytest.fixture(scope="module")
def sdxl(backbones):
    return backbones["sdxl"]


# ---------------------------------------------------------------- against diffusers' own pipelines


def diffusers_pipeline(backbone):
    import diffusers

    from lib_lycoris.studio.bpe import make_tokenizer

    filled = make_tokenizer()
    filled.pad_token = "!"
    assert filled.pad_token_id == 0
    common = {"unet": backbone.unet, "vae": backbone.model.vae, "scheduler": diffusers.EulerDiscreteScheduler(steps_offset=1)}
    if len(backbone.text_encoders) == 1:
        return diffusers.StableDiffusionPipeline(**common, text_encoder=backbone.text_encoders[0], tokenizer=filled, safety_checker=None,
                                                 feature_extractor=None, requires_safety_checker=False)
    first, second = backbone.text_encoders
    return diffusers.StableDiffusionXLPipeline(**common, text_encoder=first, text_encoder_2=second, tokenizer=make_tokenizer(), tokenizer_2=filled,
                                               add_watermarker=False)


@torch.no_grad()
def test_sd2_encodes_captions_as_diffusers_does(sd2):
    wanted, _ = diffusers_pipeline(sd2).encode_prompt("a red dot, small", "cpu", 1, False)
    torch.testing.assert_close(sd2.encode_captions(["a red dot, small"]), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_sdxl_encodes_captions_and_is_told_sizes_as_by_diffusers(sdxl):
    pipeline = diffusers_pipeline(sdxl)
    wanted, nothing, pooled, no_pooled = pipeline.encode_prompt("a red dot, small", device="cpu", num_images_per_prompt=1)
    found = sdxl.encode_captions(["a red dot, small", ""])
    torch.testing.assert_close(found["crossattn"], torch.cat([wanted, nothing]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["pooled"], torch.cat([pooled, no_pooled]), rtol=1e-4, atol=1e-5)

    x, t = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([500])
    ids = pipeline._get_add_time_ids((70, 90), (3, 4), (64, 96), dtype=torch.float32, text_encoder_projection_dim=24)
    theirs = sdxl.unet(x, t, wanted, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample
    row = {key: value[:1] for key, value in found.items()}
    ours = sdxl.predict(x, t, row, framings=[Framing((70, 90), (3, 4), (64, 96))])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, sdxl.predict(x, t, row), atol=1e-4)  # it does hear of the sizes


@torch.no_grad()
def test_long_and_short_captions_of_sdxl_go_into_one_batch(sdxl):
    both, long, short = sdxl.encode_captions([LONG, "a dot"]), sdxl.encode_captions([LONG]), sdxl.encode_captions(["a dot"])
    assert both["crossattn"].shape == (2, *long["crossattn"].shape[1:]) and long["crossattn"].shape[1] > 2 * 77 and short["crossattn"].shape[1:] == (77, 48)
    torch.testing.assert_close(both["crossattn"][1:, :77], short["crossattn"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both["pooled"], torch.cat([long["pooled"], short["pooled"]]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_the_distance_to_what_the_model_predicts(backbones, architecture):
    """Its velocity by SD 2, the noise by SDXL, with diffusers' scheduler for noising and target."""
    import diffusers

    backbone, generator = backbones[architecture], torch.Generator().manual_seed(3)
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents, noise = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    t, captions = torch.tensor([40, 900]), ["a dot", "two dots"]

    class Texts:
        def encode(self, captions):
            return backbone.encode_captions(captions)

    with torch.no_grad():
        objective = Objective(TrainConfig(), backbone, Texts())
        draws = [Draw(0, row, int(t[row]), False, noise[row]) for row in range(2)]
        found = objective.loss_of(PlainMaterial(list(latents), captions), [(0, 0), (0, 1)], latents, draws)
        predicted = backbone.predict(scheduler.add_noise(latents, noise, t), t, backbone.encode_captions(captions))
        wanted = {"sd2": scheduler.get_velocity(latents, noise, t), "sdxl": noise}[architecture]
    torch.testing.assert_close(found, (predicted - wanted).square().mean(), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- from pictures to the file


def write_pictures(folder):
    """Two pictures of different shape, so that SDXL is told different sizes."""
    folder.mkdir()
    for number, (size, colour) in enumerate([((96, 96), "red"), ((140, 70), "blue")]):
        Image.new("RGB", size, colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a plain {colour} wall", encoding="utf-8")
    return folder


def fixed_loss(backbone, samples):
    """The loss on these (latents, caption, framing), at the same noise and time steps in every call."""
    generator, losses = torch.Generator().manual_seed(5), []
    with torch.no_grad():
        for latents, caption, framing in samples:
            told = {"framings": [framing]} if getattr(backbone, "framed", False) else {}
            for step in (100, 500, 900):
                noise, alpha = torch.randn(latents.shape, generator=generator), backbone.alphas_cumprod[step]
                x_t = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
                wanted = noise if backbone.prediction == "eps" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
                losses.append((backbone.predict(x_t, torch.tensor([step]), backbone.encode_captions([caption]), **told) - wanted).square().mean())
    return float(torch.stack(losses).mean())


def samples_of(backbone, folder):
    """The pictures of `write_pictures` as `fixed_loss` takes them."""
    samples = []
    for number, colour in enumerate(("red", "blue")):
        picture = read_picture(folder / f"{number}.png", 96)
        size = tuple(picture.shape[1:])
        samples.append((backbone.encode_pictures(picture[None], torch.Generator().manual_seed(0)), f"a plain {colour} wall", Framing(size, (0, 0), size)))
    return samples


@pytest.fixture(scope="module", params=ARCHITECTURES)
def trained(request, tmp_path_factory, backbones):
    """A training of each: (architecture, backbone, result, the layers that were trained, what the trainer asked of the model, folder)."""
    backbone, folder = backbones[request.param], tmp_path_factory.mktemp(request.param)
    config = TrainConfig.from_dict({
        "data": {"folders": [str(write_pictures(folder / "data"))], "resolution": 96, "bucket_step": 32, "batch_size": 1},
        "network": {"rank": 2}, "training": {"steps": 30, "learning_rate": 0.01, "schedule": "constant"},
        "output": {"folder": str(folder), "name": "net", "dtype": "fp32", "save_every": 0},
    })
    methods, asked = [], []
    with pytest.MonkeyPatch.context() as changes:
        make_method, predict = loop.make_method, backbone.predict

        def noting_method(*arguments):
            methods.append(make_method(*arguments))
            return methods[-1]

        def noting_predict(x_t, t, conditioning, **told):
            asked.append((tuple(x_t.shape), told.get("framings")))
            return predict(x_t, t, conditioning, **told)

        changes.setattr(loop, "make_method", noting_method)
        changes.setattr(backbone, "predict", noting_predict)
        result = loop.train(config, backbone)
    return request.param, backbone, result, methods[0].layers, asked, folder


def test_all_layers_that_captions_and_pictures_reach_are_trained(trained):
    architecture, _, _, layers, _, _ = trained
    still = {key for key, layer in layers.items() if not layer.tensors()["lora_up.weight"].any()}
    # Of SDXL's first text encoder the vectors before the last layer are taken; of the second one too, but its pooled ones come out of the last.
    last = {key for key in layers if key[0] == "te1" and "layers_2" in key[1]}
    assert still == (last if architecture == "sdxl" else set())
    # SD 2 has 16 transformer blocks, SDXL 70: two attentions of four layers, two of the feed-forward in each.
    blocks = {"sd2": 16, "sdxl": 70}[architecture]
    assert sum("transformer_blocks" in name for component, name in layers if component == "unet") == 10 * blocks
    assert {component for component, _ in layers} == ({"unet", "te1"} if architecture == "sd2" else {"unet", "te1", "te2"})


def test_sdxl_is_told_the_sizes_of_the_pictures_of_each_batch(trained):
    architecture, _, _, _, asked, _ = trained
    assert len({shape for shape, _ in asked}) == 2  # two buckets
    if architecture == "sd2":
        assert all(framings is None for _, framings in asked)
        return
    for shape, (framing,) in asked:
        assert framing.target == (8 * shape[2], 8 * shape[3])
        assert framing.original == ((96, 96) if shape[2] == shape[3] else (70, 140))


def test_the_file_says_what_it_is_for_and_has_the_names_that_others_read(trained):
    architecture, _, result, layers, _, _ = trained
    metadata, network = read_metadata(result.path), open_network(result.path)
    assert metadata["ss_base_model_version"] == {"sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[architecture]
    assert metadata["ss_v2"] == str(architecture == "sd2")
    assert metadata["modelspec.architecture"] == {"sd2": "stable-diffusion-v2-768-v/lora", "sdxl": "stable-diffusion-xl-v1-base/lora"}[architecture]
    assert metadata["modelspec.prediction_type"] == {"sd2": "v", "sdxl": "epsilon"}[architecture]
    prefixes = {"sd2": {"lora_unet", "lora_te"}, "sdxl": {"lora_unet", "lora_te1", "lora_te2"}}[architecture]
    assert {"_".join(name.split("_")[:2]) for name in network.layers} == prefixes
    assert set(network.layers) == {kohya_key(key, metadata["ss_base_model_version"]) for key in layers}
    # the sdxl file of kohya's own trainer has LDM's names for the UNet
    assert any(name.startswith("lora_unet_" + {"sd2": "down_blocks_", "sdxl": "input_blocks_"}[architecture]) for name in network.layers)


def test_the_file_gives_the_trained_weights_on_the_same_model_and_a_smaller_loss(trained):
    _, backbone, result, layers, _, folder = trained
    network, targets = open_network(result.path), find_targets(backbone.unet, backbone.text_encoders)
    found = {network.targets[name]: layer for name, layer in network.layers.items()}
    assert set(found) == set(layers)
    for key, layer in layers.items():
        weight = targets[key].module.weight
        torch.testing.assert_close(found[key].delta(weight), layer.delta(weight).detach(), rtol=1e-5, atol=1e-7, msg=str(key))

    samples = samples_of(backbone, folder / "data")
    before = fixed_loss(backbone, samples)
    with patch(backbone.unet, backbone.text_encoders) as session:
        assert session.apply([(network, 1.0)]) == []
        after = fixed_loss(backbone, samples)
    assert after < 0.9 * before, (before, after)
    assert fixed_loss(backbone, samples) == before


OTHERS = {  # kind: settings other than a LoCon's, and the rate
    "lora": ({}, 0.01), "locon, Tucker": ({"kind": "locon", "tucker": True}, 0.01), "dora": ({"kind": "locon", "dora": True}, 0.01),
    "loha": ({"kind": "loha"}, 0.01), "lokr": ({"kind": "lokr"}, 0.01), "adalora": ({"kind": "adalora", "target_rank": 1, "init_rank": 2}, 0.1),
    "full": ({"kind": "full"}, 1e-3), "norm": ({"kind": "norm"}, 0.03), "ia3": ({"kind": "ia3"}, 0.03),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kind_is_trained_and_its_file_lowers_the_loss(architecture, kind, backbones, tmp_path):
    backbone, (network, rate) = backbones[architecture], OTHERS[kind]
    config = TrainConfig.from_dict({
        "data": {"folders": [str(write_pictures(tmp_path / "data"))], "resolution": 96, "bucket_step": 32, "batch_size": 1},
        "network": {"kind": kind, **network}, "training": {"steps": 10, "learning_rate": rate, "schedule": "constant"},
        "output": {"folder": str(tmp_path), "name": "net", "dtype": "fp32", "save_every": 0},
    })
    network, samples = open_network(loop.train(config, backbone).path), samples_of(backbone, tmp_path / "data")
    before = fixed_loss(backbone, samples)
    with patch(backbone.unet, backbone.text_encoders) as session:
        assert session.apply([(network, 1.0)]) == []
        assert fixed_loss(backbone, samples) < before
    assert fixed_loss(backbone, samples) == before


def test_sdxl_previews_repeat_and_follow_prompt_and_seed(sdxl):
    first = sdxl.preview("a red dot", 1, steps=3)
    assert first.shape == (64, 64, 3) and (first == sdxl.preview("a red dot", 1, steps=3)).all()
    assert (first != sdxl.preview("a red dot", 2, steps=3)).any() and (first != sdxl.preview("many blue lines", 1, steps=3)).any()
    assert sdxl.preview("a red dot", 1, steps=2, width=96).shape == (64, 96, 3)
