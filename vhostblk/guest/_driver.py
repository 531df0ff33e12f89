"""
Stands where the compiled load generator is missing.

An extension module of the same name, `_driver.abi3.so`, is found before this file, so whoever
imports `vhostblk.guest._driver` gets the generator or this error; and tools that read source see a
module.
"""

from typing import Any

ffi: Any
lib: Any

raise ImportError("it was built without a C compiler or liburing")
