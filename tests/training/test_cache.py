"""A second training encodes nothing that is as it was, and everything that is not."""

from __future__ import annotations

import threading

import pytest
import torch
from PIL import Image

from lib_lycoris.training.cache import DiskCache, key_of
from lib_lycoris.training.conditioning import CachedCaptions
from lib_lycoris.training.config import DataSettings
from lib_lycoris.training.dataset import read_dataset
from lib_lycoris.training.latents import Latents, variants_of

from .fake import FakeBackbone, make_pictures


def encode(folder, cache, backbone=None, **values):
    pictures = read_dataset(DataSettings(folders=(str(folder),), **{"resolution": 64, **values}), cache.knows).pictures
    latents = Latents(backbone or FakeBackbone(), 0.0, cache)
    latents.encode(pictures)
    return latents.encoded, [latents.get(picture, variant).latents for picture in pictures for variant in variants_of(picture)]


def assert_equal(one, other):
    assert len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_second_run_encodes_nothing_and_has_the_same_latents_bit_for_bit(tmp_path):
    folder, cache = make_pictures(tmp_path / "data", 3, size=(128, 64)), DiskCache(tmp_path / "cache")
    count, first = encode(folder, cache, flip=True, random_crop=True)
    assert count == 3 * 2 * 4 and len({tuple(one.flatten().tolist()) for one in first}) == count
    again, second = encode(folder, DiskCache(tmp_path / "cache"), flip=True, random_crop=True)
    assert again == 0 and cache.problems == []
    assert_equal(first, second)
    latents = Latents(FakeBackbone())
    pictures = read_dataset(DataSettings(folders=(str(folder),), resolution=64, flip=True, random_crop=True)).pictures
    latents.encode(pictures)
    assert_equal(first, [latents.get(picture, variant).latents for picture in pictures for variant in variants_of(picture)])


def test_a_changed_picture_another_size_or_another_autoencoder_is_encoded_anew(tmp_path):
    folder, cache = make_pictures(tmp_path / "data", 3), DiskCache(tmp_path / "cache")
    encode(folder, cache)
    Image.new("RGB", (64, 64), "yellow").save(folder / "1.png")
    assert encode(folder, cache)[0] == 1
    (folder / "1.png").rename(folder / "renamed.png")
    (folder / "1.txt").rename(folder / "renamed.txt")
    assert encode(folder, cache)[0] == 0
    assert encode(folder, cache, buckets=False)[0] == 0 and encode(folder, cache, resolution=128)[0] == 3

    class Other(FakeBackbone):
        def encode_pictures(self, pictures, generator=None):
            return super().encode_pictures(pictures, generator) * 1.1

    assert encode(folder, cache, Other())[0] == 3


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_made_anew_and_told(tmp_path, damage):
    folder = make_pictures(tmp_path / "data", 2)
    _, first = encode(folder, DiskCache(tmp_path / "cache"))
    path = sorted((tmp_path / "cache" / "latents").rglob("*.cached"))[0]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes({"truncated": data[:-8], "flipped": data, "empty": b"", "foreign": b"x" * 500}[damage])
    cache = DiskCache(tmp_path / "cache")
    count, second = encode(folder, cache)
    assert count == 1 and len(cache.problems) == 1 and path.name in cache.problems[0]
    assert_equal(first, second)
    assert encode(folder, DiskCache(tmp_path / "cache"))[0] == 0


def test_a_cache_that_cant_be_written_to_is_told_once_and_the_training_goes_on(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = DiskCache(tmp_path / "cache")
    assert encode(make_pictures(tmp_path / "data", 3), cache)[0] == 3 and len(cache.problems) == 1 and "can't be written" in cache.problems[0]


def test_two_at_once_share_a_cache(tmp_path):
    cache, failed, key = DiskCache(tmp_path), [], key_of("one")
    value = {"x": torch.arange(1000.0)}

    def work():
        for _ in range(20):
            cache.write("kind", key, value)
            found = DiskCache(tmp_path).read("kind", key)
            if found is None or not torch.equal(found[0]["x"], value["x"]):
                failed.append(found)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and cache.problems == [] and [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{key}.cached"]


class Sdxl(FakeBackbone):
    """Captions are a dict of tensors, as a larger model's are."""

    def encode_captions(self, captions):
        vectors = super().encode_captions(captions)
        return {"vectors": vectors, "more": (vectors.mean(1), [vectors[:, :1].half()])}


@pytest.mark.parametrize("kind", [FakeBackbone, Sdxl])
def test_captions_are_encoded_once_for_all_trainings(tmp_path, kind):
    texts, backbone, again = ["a cat", "a dog", ""], kind(), kind()
    captions = CachedCaptions(backbone, DiskCache(tmp_path), "checkpoint 1")
    captions.prepare(texts)
    assert len(backbone.captions) == 4  # with the probe
    second = CachedCaptions(again, DiskCache(tmp_path), "checkpoint 1")
    second.prepare(texts)
    assert len(again.captions) == 1
    flat = [tensor for conditioning in (captions.encode(texts), second.encode(texts)) for tensor in torch.utils._pytree.tree_flatten(conditioning)[0]]
    half = len(flat) // 2
    assert_equal(flat[:half], flat[half:])
    assert len(backbone.captions) == 4 and len(again.captions) == 1
    other = kind()
    CachedCaptions(other, DiskCache(tmp_path), "checkpoint 2").prepare(texts)
    assert len(other.captions) == 4


def test_captions_of_another_text_encoder_are_not_taken(tmp_path):
    CachedCaptions(FakeBackbone(), DiskCache(tmp_path)).prepare(["a"])
    tuned = FakeBackbone()
    with torch.no_grad():
        tuned.text_encoders[0].text_model.final_layer_norm.weight.mul_(1.05)
    CachedCaptions(tuned, DiskCache(tmp_path)).prepare(["a"])
    assert tuned.captions[1:] == ["a"]


def test_ever_new_captions_do_not_fill_the_memory():
    backbone = FakeBackbone()
    captions = CachedCaptions(backbone, most_bytes=5 * 12 * 8 * 4)
    for number in range(20):
        captions.encode([f"caption {number}"])
    captions.encode(["caption 19", "caption 16"])
    assert len(backbone.captions) == 20
    captions.encode(["caption 0"])
    assert len(backbone.captions) == 21 and len(captions._known) <= 5


def test_files_with_the_first_ending_are_still_used_and_get_todays(tmp_path):
    folder, cache = make_pictures(tmp_path / "data", 2), DiskCache(tmp_path / "cache")
    _, first = encode(folder, cache)
    for path in sorted((tmp_path / "cache" / "latents").rglob("*.cached")):
        path.rename(path.with_suffix(".safetensors"))
    count, second = encode(folder, cache)
    assert count == 0 and len(list((tmp_path / "cache").rglob("*.cached"))) == 2 and not list(tmp_path.rglob("*.safetensors"))
    assert_equal(first, second)
