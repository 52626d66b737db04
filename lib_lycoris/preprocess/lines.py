"""Control maps of lines: white on black, as the adapters were trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..setting import Section, setting
from .tones import brightness, three


@dataclass(frozen=True)
class CannyValues(Section):
    """Values of `canny`."""

    section = "canny"
    low: float = setting(100.0, "Gradient above which a pixel that touches a line belongs to it.", minimum=0, maximum=1000)
    high: float = setting(200.0, "Gradient above which a pixel begins a line.", minimum=0, maximum=1000)

    def _check_together(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"canny.low = {self.low:g} is above canny.high = {self.high:g}: give a lower one")


@dataclass(frozen=True)
class SketchValues(Section):
    """Values of `xdog`."""

    section = "xdog"
    threshold: float = setting(0.75, "How bright a spot of the sharpened picture must be to stay paper; higher draws more.", minimum=0, maximum=1)
    sigma: float = setting(0.8, "Width of the finer blur in pixels: that of the lines.", minimum=0.3, maximum=8)


@dataclass(frozen=True)
class LineartValues(Section):
    """Values of `lineart`."""

    section = "lineart"
    sigma: float = setting(6.0, "Width in pixels of the surroundings that a line is darker than.", minimum=0.5, maximum=32)
    gain: float = setting(1.0, "Brightness of the lines: 1 makes the strongest twentieth of them white.", minimum=0.1, maximum=10)


@dataclass(frozen=True)
class SoftEdgeValues(Section):
    """Values of `softedge`."""

    section = "softedge"
    sigma: float = setting(1.5, "Blur before edges are looked for, in pixels; more leaves only the large ones.", minimum=0, maximum=16)
    gain: float = setting(1.0, "Brightness of the edges: 1 makes the strongest fiftieth of the pixels white.", minimum=0.1, maximum=10)


def canny(picture: Any, values: CannyValues) -> Any:
    """Thin lines where the brightness changes.

    Source: J. Canny, "A computational approach to edge detection", 1986.
    """
    import cv2

    return three(cv2.Canny(brightness(picture), values.low, values.high))


def xdog(picture: Any, values: SketchValues) -> Any:
    """A sketch in white on black: where a picture sharpened by a difference of two Gaussians is dark. No shades, as the sketch adapters want it.

    Source: H. Winnemöller, J. E. Kyprianidis, S. C. Olsen, "XDoG: An eXtended difference-of-Gaussians compendium", 2012, equations 7 and 5 with φ → ∞,
    k = 1.6 and p = 20.
    """
    import cv2
    import numpy as np

    light = brightness(picture).astype(np.float32) / 255
    fine, wide = (cv2.GaussianBlur(light, (0, 0), sigma) for sigma in (values.sigma, 1.6 * values.sigma))
    return three(np.where(21 * fine - 20 * wide < values.threshold, 255, 0).astype(np.uint8))


def lineart(picture: Any, values: LineartValues) -> Any:
    """Lines where the picture is darker than its surroundings in some colour, the darker the whiter."""
    import cv2
    import numpy as np

    light = picture.astype(np.float32)
    darker = (cv2.GaussianBlur(light, (0, 0), values.sigma) - light).max(axis=-1).clip(min=0)
    lines = darker[darker > 8]  # below lies noise
    white = max(32.0, float(np.percentile(lines, 95))) if lines.size else 255.0
    return three((darker * (255 * values.gain / white)).clip(0, 255).astype(np.uint8))


def softedge(picture: Any, values: SoftEdgeValues) -> Any:
    """Soft edges: how fast brightness changes (Scharr's gradient), the strongest white."""
    import cv2
    import numpy as np

    light = brightness(picture).astype(np.float32)
    if values.sigma:
        light = cv2.GaussianBlur(light, (0, 0), values.sigma)
    strength = np.hypot(cv2.Scharr(light, cv2.CV_32F, 1, 0), cv2.Scharr(light, cv2.CV_32F, 0, 1)) / 16
    white = max(2.0, float(np.percentile(strength, 98)))
    return three((strength * (255 * values.gain / white)).clip(0, 255).astype(np.uint8))
