"""A skeleton in OpenPose's colours, drawn from key points in JSON: no picture is looked at, and no weights are needed."""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..setting import Section, setting

JOINTS = 18
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17))
"""Pairs of joints in the order of their colours.

Source: CMU-Perceptual-Computing-Lab/openpose, doc/02_output.md and its COCO model; the colours go round the circle of hues by 20 degrees.
"""
COLOURS = tuple(tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number / JOINTS, 1, 1)) for number in range(JOINTS))
BODY_25 = (*range(8), *range(9, 15), *range(15, 19))
"""For each joint of the 18-point form its number in the 25-point form (whose point 8 is between the hips, and whose last six are feet)."""
MOST_PEOPLE = 100

Person = Sequence[tuple[float, float] | None]


@dataclass(frozen=True)
class SkeletonValues(Section):
    """Values of `skeleton`."""

    section = "skeleton"
    confidence: float = setting(0.05, "Key points with less confidence are left out.", minimum=0, maximum=1)
    thickness: float = setting(4.0, "Thickness of bones in pixels, for a map whose shorter side is 512.", minimum=0.5, maximum=32)
    keypoints: str = setting("", "OpenPose's JSON: people with pose_keypoints_2d (18 or 25 points of x, y, confidence), canvas_width and canvas_height.")


@dataclass(frozen=True)
class Poses:
    """People's joints in shares of the canvas."""

    people: tuple[Person, ...]


def skeleton(blank: Any, values: SkeletonValues) -> Any:
    """The people of the key points on a map of the blank one's size [H,W,3]."""
    if not values.keypoints.strip():
        raise ConfigError("the preprocessor skeleton needs key points: give OpenPose's JSON; a picture that shows a skeleton already wants none")
    height, width = blank.shape[:2]
    return draw_poses(read_poses(values.keypoints, (width, height), values.confidence), width, height, values.thickness)


def canvas_of(text: str) -> tuple[int, int] | None:
    """(width, height) of the canvas that the key points are told for; None where they don't tell, or are none."""
    return _canvas(_read(text)) if text.strip() else None


def read_poses(text: str, size: tuple[int, int], confidence: float = 0.05) -> Poses:
    """The poses of a text in JSON: OpenPose's own output, a list with one of those, or {"width", "height", "keypoints": [[[x, y], …], …]}.

    Args:
        text: the JSON.
        size: (width, height) of the canvas where the text does not tell.
        confidence: joints with less are left out.

    Raises:
        ConfigError: no such text.
    """
    said = _read(text)
    canvas = _canvas(said)
    people = _people(said)
    if not 0 < len(people) <= MOST_PEOPLE:
        raise ConfigError(f'key points: {len(people)} people: give "people" with 1 to {MOST_PEOPLE} of them')
    points = [[point for point in person if point is not None and point[2] >= confidence] for person in people]
    whole = [number for person in points for point in person for number in point[:2]]
    shares = bool(whole) and canvas is None and all(0 <= number <= 1 for number in whole)
    width, height = (1, 1) if shares else (canvas or size)
    return Poses(tuple([_place(point, width, height, confidence) for point in person] for person in people))


def draw_poses(poses: Poses, width: int, height: int, thickness: float) -> Any:
    """The skeletons [H,W,3] on black: bones at six tenths of their colour, joints in full."""
    import cv2
    import numpy as np

    picture = np.zeros((height, width, 3), np.uint8)
    half = max(1, round(thickness * min(width, height) / 512))
    for person in poses.people:
        places = [None if joint is None else (joint[0] * width, joint[1] * height) for joint in person]
        for number, (one, other) in enumerate(LIMBS):
            if places[one] is not None and places[other] is not None:
                _draw_bone(picture, places[one], places[other], half, tuple(round(0.6 * part) for part in COLOURS[number]))
        for number, joint in enumerate(places):
            if joint is not None:
                cv2.circle(picture, (round(joint[0]), round(joint[1])), half, COLOURS[number], -1)
    return picture


def _draw_bone(picture: Any, one: tuple[float, float], other: tuple[float, float], half: int, colour: tuple[int, ...]) -> None:
    import cv2

    centre = round((one[0] + other[0]) / 2), round((one[1] + other[1]) / 2)
    length, angle = math.dist(one, other), math.degrees(math.atan2(other[1] - one[1], other[0] - one[0]))
    cv2.fillConvexPoly(picture, cv2.ellipse2Poly(centre, (round(length / 2), half), round(angle), 0, 360, 1), colour)


def _read(text: str) -> Mapping[str, Any]:
    try:
        said = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"key points: the text is not JSON ({error}): give OpenPose's output") from None
    if isinstance(said, list) and len(said) == 1:
        said = said[0]
    if not isinstance(said, Mapping):
        raise ConfigError(f"key points: a JSON {type(said).__name__} is no pose: give an object with people")
    return said


def _canvas(said: Mapping[str, Any]) -> tuple[int, int] | None:
    for names in (("canvas_width", "canvas_height"), ("width", "height")):
        sides = [said.get(name) for name in names]
        if all(isinstance(side, (int, float)) and not isinstance(side, bool) and 1 <= side <= 1e5 for side in sides):
            return int(sides[0]), int(sides[1])
    return None


def _people(said: Mapping[str, Any]) -> list[list[tuple[float, float, float] | None]]:
    if isinstance(said.get("people"), list):
        return [_joints(_triples(person.get("pose_keypoints_2d") if isinstance(person, Mapping) else None)) for person in said["people"]]
    if isinstance(said.get("keypoints"), list):
        return [_joints([_point(point) for point in person] if isinstance(person, list) else []) for person in said["keypoints"]]
    raise ConfigError('key points: neither "people" nor "keypoints" is in the JSON: give OpenPose\'s output')


def _triples(numbers: Any) -> list[tuple[float, float, float] | None]:
    if not isinstance(numbers, list) or len(numbers) % 3:
        raise ConfigError("key points: a person's pose_keypoints_2d must be a list of x, y and confidence for each point")
    return [_point(numbers[start : start + 3]) for start in range(0, len(numbers), 3)]


def _point(numbers: Any) -> tuple[float, float, float] | None:
    """x, y and confidence; None for a point that was not found, which OpenPose writes as zeros."""
    if numbers is None:
        return None
    if not isinstance(numbers, list) or len(numbers) not in (2, 3) or not all(_finite(number) for number in numbers):
        raise ConfigError("key points: each point must be two or three finite numbers")
    x, y, confidence = (*numbers, 1.0)[:3]
    return None if confidence <= 0 else (float(x), float(y), float(confidence))


def _finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and abs(number) < 1e6


def _joints(points: list[tuple[float, float, float] | None]) -> list[tuple[float, float, float] | None]:
    if len(points) == JOINTS:
        return points
    if len(points) == 25:
        return [points[number] for number in BODY_25]
    raise ConfigError(f"key points: a person has {len(points)} points: 18 (COCO) or 25 (BODY_25) are known")


def _place(point: tuple[float, float, float] | None, width: float, height: float, confidence: float) -> tuple[float, float] | None:
    return None if point is None or point[2] < confidence else (point[0] / width, point[1] / height)
