"""The presets: name -> settings, with the command, the time and the result to expect.

Published figures have their source; ours have the machine. "Not run here" means that.
"""

from __future__ import annotations

from trainer.config.ours import OURS
from trainer.config.preset import Preset
from trainer.config.published import PUBLISHED
from trainer.config.run_config import ConfigError, RunConfig
from trainer.config.tutorials import TUTORIALS

PRESETS: dict[str, Preset] = dict((*OURS, *PUBLISHED, *TUTORIALS))
"""Name -> preset, the default first."""


def preset(name: str) -> RunConfig:
    """The named preset's settings; ConfigError if there is none of that name."""
    return find(name).config


def find(name: str) -> Preset:
    """The named preset; ConfigError if there is none of that name."""
    if name not in PRESETS:
        raise ConfigError(
            "config.no_preset", f"--preset {name}: does not exist; choose from {', '.join(PRESETS)}"
        )
    return PRESETS[name]
