"""
Stands where the compiled core is missing.

An extension module of the same name, `_native.abi3.so`, is found before this file, so whoever
imports `vhostblk._native` gets the core or this error; and tools that read source see a module.
"""

from typing import Any

ffi: Any
lib: Any

raise ImportError("it was built without a C compiler or liburing")
