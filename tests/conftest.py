"""Settings for the whole suite."""

from __future__ import annotations

import os

from hypothesis import settings

# In CI the same examples every time: a change is judged by what it changes. Elsewhere new ones are drawn at every run.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("local", deadline=None)  # two test processes on two cores: a slow example is no finding
settings.load_profile("ci" if os.environ.get("CI") else "local")
