"""Settings of all tests. Being here also puts this directory on the import path, so that tests can import ``reference``."""

import os

from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes with two threads each are slower on two cores than one; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
