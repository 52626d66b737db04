"""The part that the host calls as a script: it draws nothing, and only looks at prompts."""

from __future__ import annotations

from typing import Any

from modules import scripts

from .tags import cut_negatives, note_prompts


class LycoScript(scripts.Script):
    """Notes each batch's prompts before the host cuts the tags out of them."""

    create_group = False

    def title(self) -> str:
        """The name under which the host lists it."""
        return "Lyco Studio"

    def show(self, is_img2img: bool) -> Any:
        """Always on, without a control."""
        return scripts.AlwaysVisible

    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Keeps the prompts with their tags."""
        note_prompts(p)

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Cuts our tags out of negative prompts also where the user wants no extra networks: the host cuts those of the others."""
        cut_negatives(p)
