"""The README says what the records say."""
from __future__ import annotations

from pathlib import Path

import pytest

from lib_lycoris.files.metadata import HELD, HELD_BY_ADAPTERS
from lib_lycoris.training.config import settings

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def _default(value) -> str:
    if value is None or value == ():
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("setting", settings(), ids=lambda setting: setting.key)
def test_every_setting_stands_in_the_readme_with_its_default_and_its_sentence(setting):
    row = f"| `{setting.key}` | {_default(setting.default)} | {setting.help} |"
    assert row in README, f"put this row into README.md: {row}"


@pytest.mark.parametrize("key", sorted(HELD | HELD_BY_ADAPTERS))
def test_every_key_that_a_trained_file_can_hold_stands_in_the_readme(key):
    row = f"| `{key}` | {(HELD | HELD_BY_ADAPTERS)[key]} |"
    assert row in README, f"put this row into README.md: {row}"
