"""What holds for all tests."""

from hypothesis import settings

# On a machine that other work shares, time says nothing about an example; what must be quick measures itself.
settings.register_profile("house", deadline=None)
settings.load_profile("house")
