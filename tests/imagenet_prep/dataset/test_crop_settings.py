"""The text of crop settings: equal where crops are equal, and read back."""

from __future__ import annotations

import pytest

from imagenet_prep.dataset.crop_settings import CropSettings


def test_the_settings_text_tells_settings_apart() -> None:
    assert CropSettings().text() == CropSettings(256, 90).text()
    others = {CropSettings(255).text(), CropSettings(quality=91).text()}
    assert len(others | {CropSettings().text()}) == 3


def test_settings_are_read_back_from_their_text() -> None:
    settings = CropSettings(227, 95, "squash", "area", "ignore", "keep")
    assert CropSettings.parse(settings.text()) == settings
    for wrong in ("", "size=8", settings.text().replace("algorithm=", "algorithm=0")):
        with pytest.raises(ValueError, match=r"made by another|other settings"):
            CropSettings.parse(wrong)
