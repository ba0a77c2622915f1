"""levelhead: PPO whose value function stays level at any reward scale, and the value heads that make it so."""

from importlib.metadata import version

import lazy_loader

__version__ = version("levelhead")
# Names are loaded on first use, from where __init__.pyi says: someone who wants a value head does not wait for
# environments and writers.
__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return __all__
