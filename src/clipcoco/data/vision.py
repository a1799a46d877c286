"""torchvision, imported without torch's compiler: torchvision.ops asks for it, which costs what torch itself does.

Import it where it is first needed. `torchvision` and its decoder of JPEG are what it gives.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"


class _Later(ModuleType):
    """In the compiler's place while torchvision is imported: what it asks is answered when somebody wants to know."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _is_compile_supported if name == "is_compile_supported" else getattr(_compiler(), name)


def _is_compile_supported(device_type: str) -> bool:
    supported: bool = _compiler().is_compile_supported(device_type)
    return supported


def _compiler() -> ModuleType:
    _make_way()
    return importlib.import_module(_COMPILER)


def _make_way() -> None:
    if isinstance(sys.modules.get(_COMPILER), _Later):
        del sys.modules[_COMPILER]


if _COMPILER not in sys.modules:
    sys.modules[_COMPILER] = _Later(_COMPILER)
try:
    import torchvision as torchvision
finally:
    _make_way()

try:
    from torchvision.io import ImageReadMode as ImageReadMode
    from torchvision.io import decode_jpeg as decode_jpeg
except ImportError:  # its removal is announced; Pillow gives the same pixels more slowly
    decode_jpeg = None
