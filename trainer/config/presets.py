"""The recipes: name -> settings, with the command, the time and the result to expect.

Figures of other people are named with their source and were not repeated here; figures of
ours say on which machine. "Not run here" means exactly that.
"""

from __future__ import annotations

from trainer.config.ours import OURS
from trainer.config.preset import Preset
from trainer.config.published import PUBLISHED
from trainer.config.run_config import ConfigError, RunConfig
from trainer.config.tutorials import TUTORIALS

PRESETS: dict[str, Preset] = dict((*OURS, *PUBLISHED, *TUTORIALS))
"""Name -> recipe, the default first."""


def preset(name: str) -> RunConfig:
    """The named recipe's settings; ConfigError if there is none of that name."""
    return find(name).config


def find(name: str) -> Preset:
    """The named recipe with its text; ConfigError if there is none of that name."""
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
