"""The page's style, for both hosts: the studio hands it to gradio, in the WebUI the tab brings it along."""

from __future__ import annotations

from . import library_text, text

_COMPLETE = """
#lycoris_history_pictures .grid-container { grid-template-columns: repeat(6, minmax(0, 1fr)) !important; grid-auto-rows: 7rem !important; }
#lycoris_complete { position: absolute; z-index: 1000; margin: 2px 0 0; padding: 4px; list-style: none; border-radius: 6px; max-width: 90vw;
  background: var(--background-fill-primary, #fff); color: var(--body-text-color, #222); border: 1px solid var(--border-color-primary, #ccc);
  box-shadow: 0 4px 14px rgba(0, 0, 0, 0.25); font-size: 0.9rem; }
#lycoris_complete li { display: flex; justify-content: space-between; gap: 1.5rem; padding: 0.25rem 0.6rem; border-radius: 4px; cursor: pointer; }
#lycoris_complete li span { opacity: 0.7; }
#lycoris_complete li[aria-selected=true] { background: rgba(234, 88, 12, 0.2); }
"""

_GENERATE = """
.lycoris-generate, .lycoris-library { --block-info-text-color: #52525b; }
.dark .lycoris-generate { --block-info-text-color: #d4d4d8; }
.dark .lycoris-library { --block-info-text-color: #d4d4d8; }
@media (min-width: 900px) {
  #lycoris_generate_results { position: sticky; top: 0.5rem; align-self: flex-start; }
  #lycoris_generate_results:has(#lycoris_history button.open) { position: static; }
}
.lycoris-generate .lyco-adapter-head { align-items: flex-end; }
.lycoris-generate .lyco-adapter-head > button { flex-grow: 0; min-height: 2.6rem; margin-bottom: 0.6rem; }
.lycoris-generate .lyco-adapter-words .html-container { padding: 0 0.3rem; }
.lycoris-generate .lyco-adapter-words p { margin: 0; font-size: 0.9rem; opacity: 0.85; overflow-wrap: anywhere; }
.lycoris-generate .lyco-adapter-map img { width: 100%; height: 100%; object-fit: contain; }
"""

CSS = text.CSS + library_text.CSS + _COMPLETE + _GENERATE

HEAD = "<style>.gradio-container { overflow: clip !important; }</style>"
"""For the studio's page alone, as gradio puts its own names before what stands in CSS: what is hidden there by `overflow` could not stay in sight (sticky)."""
