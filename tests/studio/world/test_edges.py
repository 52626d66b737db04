"""The embedded adapter puts shapes where edge maps have them."""
from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from PIL import Image

from lib_lycoris.control.making import settle
from lib_lycoris.files.adapters import read_adapter_facts
from lib_lycoris.library.adapters import open_adapter
from lib_lycoris.prompt.unit import Unit
from lib_lycoris.studio.backbone import StudioBackbone
from lib_lycoris.studio.checkpoint import load_checkpoint
from lib_lycoris.studio.world.edges import OTHER_SIZES, edges_config, prove, train_edges
from lib_lycoris.studio.world.files import EDGES
from lib_lycoris.studio.world.follow import follow_maps, overlap
from lib_lycoris.studio.world.maps import draw_map_dataset, edge_map, map_caption, map_scenes
from lib_lycoris.studio.world.measure import shape_mask
from lib_lycoris.studio.world.scenes import POSITIONS, SIZES, coverage, render
from lib_lycoris.training.loop import train


def test_the_measure_gives_one_for_the_scene_itself_at_any_size_and_little_for_another():
    scenes = map_scenes(40, seed=5)
    for width, height in ((64, 64), *OTHER_SIZES, (128, 128)):
        own = [overlap(render(scene, width, height), scene) for scene in scenes]
        assert min(own) > 0.9
    others = [overlap(render(scene), other) for scene, other in itertools.pairwise(scenes)]
    assert np.mean(others) < 0.5


def test_maps_are_lines_around_the_shapes_and_captions_say_neither_place_nor_size():
    for scene in map_scenes(30, seed=6):
        lines, shape = edge_map(scene)[..., 0] > 127, coverage(scene) > 0.5
        for axis in (0, 1):  # whoever walks into the shape, or out of it, crosses a line
            crossing = np.diff(shape.astype(int), axis=axis) != 0
            near = (lines[1:] | lines[:-1]) if axis == 0 else (lines[:, 1:] | lines[:, :-1])
            assert near[crossing].all()
        assert lines.mean() < 0.15
        assert not lines[0].any() and not lines[:, 0].any() and shape_mask(render(scene)).any()
        words = map_caption(scene).split()
        assert not set(words) & {*POSITIONS, *SIZES} and scene.shape in words


def test_a_dataset_has_a_map_of_its_size_beside_each_picture(tmp_path):
    folder = draw_map_dataset(tmp_path, 10, seed=2)
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 30 and names[:3] == ["scene-0000.cond.png", "scene-0000.png", "scene-0000.txt"]
    sizes = {name: size_of(folder / name) for name in names if name.endswith(".png")}
    assert len(set(sizes.values())) == 4 and all(size == sizes[name.replace(".cond", "")] for name, size in sizes.items())


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def test_with_the_embedded_adapter_shapes_are_where_a_few_maps_have_them():
    model, scenes = load_checkpoint(), map_scenes(4, seed=900)
    followed, free = follow_maps(model, open_adapter(EDGES), scenes), follow_maps(model, None, scenes)
    assert followed.mean > 0.75 and followed.mean > free.mean + 0.15


@pytest.mark.slow
def test_of_100_held_back_maps_and_at_other_sizes_twice_as_large_and_in_a_batch():
    proof = prove()
    print(proof.render())
    assert len(proof.parts["64×64"].overlaps) == 100 and proof.parts["64×64"].mean >= 0.7
    assert proof.parts["without"].mean < 0.5
    for name in (*(f"{width}×{height}" for width, height in OTHER_SIZES), "twice as large", "a batch"):
        assert len(proof.parts[name].overlaps) == 20 and proof.parts[name].mean >= 0.6, name


@pytest.mark.slow
def test_a_short_training_from_nothing_comes_most_of_the_way(tmp_path):
    """A quarter of the embedded adapter's steps."""
    path = train_edges(tmp_path, steps=750)
    assert follow_maps(load_checkpoint(), open_adapter(path), map_scenes(20, seed=900)).mean >= 0.65


def test_the_embedded_adapters_settings_train_such_an_adapter(tmp_path):
    config = edges_config(draw_map_dataset(tmp_path / "maps", 5, seed=1), tmp_path, 1, data__batch_size=2, validation__share=0.2)
    made, embedded = open_adapter(train(config, StudioBackbone(load_checkpoint())).path), open_adapter(EDGES)
    assert {name: value.shape for name, value in made.tensors().items()} == {name: value.shape for name, value in embedded.tensors().items()}
    assert config.time_sampling == "cubic" and (made.facts.base_model, made.facts.resolution) == (embedded.facts.base_model, embedded.facts.resolution)


def test_auto_makes_soft_edges_for_the_embedded_adapter():
    """By its file's name: its own maps are drawn outlines, which no preprocessor made, and soft edges of a picture are what it follows best."""
    preprocessor, resolution = settle(Unit(adapter=EDGES.stem), read_adapter_facts(EDGES))
    assert (preprocessor.name, resolution) == ("softedge", 72)
