"""Imported by the process that forks workers, and by no other."""

import atexit
import gc
import os

# What is imported stays: to look for garbage among it takes a quarter of the time.
gc.disable()
# It ends at once with its driver. To take apart what it has imported would keep whoever reads the
# driver's output for a second.
atexit.register(os._exit, 0)
