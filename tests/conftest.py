"""For all tests."""

from __future__ import annotations

import signal

# A shell that runs something in the background lets it ignore Ctrl-C, and so would the commands
# that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
