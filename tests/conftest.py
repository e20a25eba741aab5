"""Settings of all tests. Being here also puts this directory on the import path, so that tests can import ``reference``."""

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
