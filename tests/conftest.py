"""Settings for all tests."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# A busy machine makes single examples slow without any fault of theirs.
settings.register_profile("minigpt", deadline=None)
settings.load_profile("minigpt")

# Tests start processes and compare their output: a PYTHONWARNINGS or PYTHONHASHSEED of the
# developer's shell must not change it.
for _name in [name for name in os.environ if name.startswith("PYTHON")]:
    del os.environ[_name]

# A shell that runs a job in the background lets it ignore Ctrl-C, and child processes would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
