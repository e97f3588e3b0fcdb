"""Codiffuse: diffusion priors for blind inverse problems.

A blurred picture comes in; the sharp image, the unknown kernel, and how sure we are come out:

    import codiffuse

    restored = codiffuse.restore("photo.jpg")
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["Restored", "restore"]


def __getattr__(name: str):
    # On first use only: `import codiffuse` is for everybody and costs nothing.
    if name in __all__:
        return getattr(import_module("codiffuse.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
