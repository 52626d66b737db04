"""The page's style, for both hosts: the studio hands it to gradio, in the WebUI the tab brings it along."""

from __future__ import annotations

from . import library_text, text

CSS = text.CSS + library_text.CSS
