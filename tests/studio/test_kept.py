"""What adapters looked at is kept once under a name made of what it holds, and a picture's units come back from its infotext."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("cv2", reason="OpenCV is not here; the WebUI has it")

from lib_lycoris.control.preparing import Asked, Prepared
from lib_lycoris.errors import UnknownNetworkError
from lib_lycoris.prompt.infotext import parse_infotext
from lib_lycoris.prompt.unit import Unit, unit_to_dict
from lib_lycoris.studio.generate import adapter_fields
from lib_lycoris.studio.kept import Kept, picture_id
from lib_lycoris.studio.picture import make_infotext
from lib_lycoris.studio.recall import recall

POSE = '{"people": []}'


def a_picture(seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (12, 20, channels), np.uint8)


def fields_of(*asked):
    return adapter_fields(Prepared(units=[(number, each.unit) for number, each in enumerate(asked, 1) if each.unit.active]), asked)


def text_of(fields):
    return make_infotext("a cat", "", {"Steps": 5, "Sampler": "Euler", "Seed": 1, **fields, "Version": "x"})


ASKED = (
    Asked(Unit(adapter="canny, one", preprocessor="canny", threshold_a=50.0, weight=0.8, end=0.7), (a_picture(),), a_picture(1)[:, :, 0]),
    Asked(Unit(enabled=False)),
    Asked(Unit(adapter="pose", preprocessor="skeleton", keypoints=POSE), (a_picture(2), a_picture(3))),
)


def test_units_come_back_with_all_that_they_looked_at(tmp_path):
    kept, fields = Kept(tmp_path / "kept"), fields_of(*ASKED)
    kept.keep(ASKED, fields)
    found = recall(text_of(fields), kept=kept, find=lambda name: None)
    first, second, third = found.units
    assert found.problems == () and second == {"enabled": False} and found.fuser == "none"
    assert {name: first[name] for name in unit_to_dict(ASKED[0].unit)} == unit_to_dict(ASKED[0].unit)
    assert third["keypoints"] == POSE and len(third["pictures"]) == 2 and "picture" not in third
    from PIL import Image

    assert np.array_equal(np.array(Image.open(first["picture"])), a_picture())
    assert np.array_equal(np.array(Image.open(first["mask"]))[:, :, 0], a_picture(1)[:, :, 0])
    assert [np.array_equal(np.array(Image.open(path)), a_picture(seed)) for path, seed in zip(third["pictures"], (2, 3), strict=True)] == [True, True]


def test_a_picture_is_kept_once_whatever_form_it_comes_in(tmp_path):
    opaque = np.concatenate([a_picture(), np.full((12, 20, 1), 255, np.uint8)], axis=2)
    assert picture_id(opaque) == picture_id(a_picture()) != picture_id(a_picture(1))
    kept = Kept(tmp_path)
    for picture in (a_picture(), opaque):
        asked = (Asked(Unit(adapter="a"), (picture,)),)
        kept.keep(asked, fields_of(*asked))
    assert len(list(tmp_path.iterdir())) == 1


def test_what_can_not_be_had_again_is_said(tmp_path):
    def find(name):
        raise UnknownNetworkError(f"no adapter is called {name!r}")

    fields = fields_of(*ASKED)
    told = recall(text_of(fields), kept=Kept(tmp_path / "empty"), find=find).problems
    for words in ("adapter 1 (canny, one): its control picture is not kept", "adapter 1 (canny, one): its region mask",
                  "adapter 3 (pose): its control pictures", "adapter 3 (pose): its key points", "no adapter is called 'pose'"):
        assert any(words in line for line in told), words
    webui = {name: value for name, value in fields.items() if name in ("Lyco adapter 1",)}
    assert any("was not kept with this picture" in line for line in recall(text_of(webui), kept=Kept(tmp_path)).problems)
    assert recall(text_of({"Lyco adapter 1": "adapter=a; preprocessor=palette; palette=#ff0000"})).problems == ()
    assert any("adapter 1: " in line for line in recall(text_of({"Lyco adapter 1": "weight=heavy"})).problems)


@pytest.mark.parametrize("digits", ["../../../etc/passwd", "0123456789ab/..", "0123456789AB", "0123456789abc", "nul"])
def test_no_infotext_leads_to_another_file(tmp_path, digits):
    (tmp_path / "kept").mkdir()
    (tmp_path / "passwd.png").write_bytes(b"x")
    text = text_of({"Lyco adapter 1": "adapter=a; preprocessor=none", "Lyco adapter 1 picture": digits, "Lyco adapter 1 keypoints": digits})
    (unit,) = recall(text, kept=Kept(tmp_path / "kept")).units
    assert "picture" not in unit and unit["keypoints"] == ""


def test_an_infotext_holds_no_path_and_no_more_than_it_has_to(tmp_path):
    fields = fields_of(*ASKED)
    assert set(fields) == {"Lyco adapter 1", "Lyco adapter 1 picture", "Lyco adapter 1 mask",
                           "Lyco adapter 3", "Lyco adapter 3 picture", "Lyco adapter 3 keypoints"}
    assert parse_infotext(text_of(fields)).fields["Lyco adapter 3 picture"] == " ".join(picture_id(a_picture(seed)) for seed in (2, 3))
