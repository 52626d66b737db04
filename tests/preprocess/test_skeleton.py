"""Skeletons from key points: the forms they come in, and where bones and joints are drawn."""

from __future__ import annotations

import json

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("cv2", reason="OpenCV is not here; the WebUI and the studio have it")

from lib_lycoris.errors import ConfigError  # noqa: E402
from lib_lycoris.preprocess.skeleton import COLOURS, LIMBS, canvas_of, draw_poses, read_poses  # noqa: E402

JOINTS = [(30 + 17 * (number % 5), 20 + 19 * (number // 5)) for number in range(18)]
NUMBERS = [value for joint in JOINTS for value in (*joint, 1.0)]
BODY_25_OF = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, 8: 9, 9: 10, 10: 11, 11: 12, 12: 13, 13: 14, 14: 15, 15: 16, 16: 17, 17: 18}
SIZE = {"canvas_width": 128, "canvas_height": 96}


def drawn(said, size=(128, 96), **more):
    return draw_poses(read_poses(json.dumps(said), size, **more), 128, 96, 8.0)


def body_25():
    points = [[0.0, 0.0, 0.0]] * 25
    for ours, theirs in BODY_25_OF.items():
        points[theirs] = [*JOINTS[ours], 1.0]
    points[8] = [5.0, 5.0, 1.0]  # the middle of the hips, and feet, have no place in the 18-point form
    points[20] = [7.0, 90.0, 1.0]
    return [value for point in points for value in point]


@pytest.mark.parametrize("said", [
    {"people": [{"pose_keypoints_2d": NUMBERS}], **SIZE},
    [{"people": [{"pose_keypoints_2d": NUMBERS}], **SIZE}],
    {"people": [{"pose_keypoints_2d": body_25()}], **SIZE},
    {"people": [{"pose_keypoints_2d": NUMBERS}]},
    {"keypoints": [[list(joint) for joint in JOINTS]], "width": 128, "height": 96},
    {"people": [{"pose_keypoints_2d": [value / side for x, y in JOINTS for value, side in ((x, 128), (y, 96), (1.0, 1))]}]},
    {"people": [{"pose_keypoints_2d": [value * 2 for x, y in JOINTS for value in (x, y, 0.5)]}], "canvas_width": 256, "canvas_height": 192},
], ids=["OpenPose", "a list of one", "BODY_25", "no canvas", "an editor's", "shares", "a larger canvas"])
def test_every_form_gives_the_same_picture(said):
    reference = drawn({"people": [{"pose_keypoints_2d": NUMBERS}], **SIZE})
    assert (drawn(said) == reference).all()
    for (x, y), colour in zip(JOINTS, COLOURS, strict=True):
        assert tuple(reference[y, x]) == colour


def test_bones_run_from_joint_to_joint_in_their_colours():
    for number, (one, other) in enumerate(LIMBS):
        said = [0.0] * 54
        said[3 * one : 3 * one + 3], said[3 * other : 3 * other + 3] = (20.0, 20.0, 1.0), (100.0, 70.0, 1.0)
        picture = drawn({"people": [{"pose_keypoints_2d": said}], **SIZE})
        assert tuple(picture[45, 60]) == tuple(round(0.6 * part) for part in COLOURS[number])
        assert tuple(picture[20, 20]) == COLOURS[one] and tuple(picture[70, 100]) == COLOURS[other]
        assert picture[80:, :60].max() == 0


def test_points_without_confidence_are_left_out():
    said = list(NUMBERS)
    said[2] = 0.01
    with_all, without = drawn({"people": [{"pose_keypoints_2d": NUMBERS}], **SIZE}), drawn({"people": [{"pose_keypoints_2d": said}], **SIZE})
    x, y = JOINTS[0]
    assert tuple(with_all[y, x]) == COLOURS[0] != tuple(without[y, x])
    assert (drawn({"people": [{"pose_keypoints_2d": said}], **SIZE}, confidence=0.0) == with_all).all()


def test_all_hues_differ():
    assert len(set(COLOURS)) == 18 and COLOURS[0] == (255, 0, 0) and COLOURS[6] == (0, 255, 0)


@pytest.mark.parametrize("text", [
    "", "no JSON", "[]", "[1, 2]", "3", "{}", '{"people": []}', '{"people": [3]}', '{"people": [{"pose_keypoints_2d": [1, 2]}]}',
    '{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', '{"people": [{"pose_keypoints_2d": ["a", 2, 3]}]}', '{"people": [{"pose_keypoints_2d": [1e99, 2, 3]}]}',
    '{"keypoints": [3]}', '{"keypoints": [[3]]}', '{"keypoints": [[[1, 2]]]}', '{"people": {}}',
    json.dumps({"people": [{"pose_keypoints_2d": NUMBERS}] * 101}),
])
def test_what_holds_no_pose_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match="key points") as error:
        read_poses(text, (64, 64))
    assert "\n" not in str(error.value)


def test_the_canvas_is_what_the_text_says():
    assert canvas_of(json.dumps({"people": [], **SIZE})) == (128, 96) and canvas_of("") is None
    assert canvas_of('{"canvas_width": true, "canvas_height": 5}') is None and canvas_of('{"width": 1e9, "height": 5}') is None
