"""MusicGen in JAX. The public names load on first use, so that `import mgjax` is quick and does not start JAX."""

import importlib
import typing

if typing.TYPE_CHECKING:
    from mgjax.api import MusicGen as MusicGen
    from mgjax.api import load as load
    from mgjax.api import load_codec as load_codec
    from mgjax.codec.codec import Codec as Codec
    from mgjax.config.model import Sampling as Sampling
    from mgjax.errors import NotFiniteError as NotFiniteError

__version__ = "0.1.0"
_MODULES = {
    "Codec": "mgjax.codec.codec",
    "MusicGen": "mgjax.api",
    "NotFiniteError": "mgjax.errors",
    "Sampling": "mgjax.config.model",
    "load": "mgjax.api",
    "load_codec": "mgjax.api",
}
__all__ = [*sorted(_MODULES), "__version__"]


def __getattr__(name: str) -> typing.Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mgjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
