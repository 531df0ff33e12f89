"""The C core as a data plane.  The contract is ``native/include/vhostblk.h``."""

from vhostblk.engine.native.engine import NativeEngine

__all__ = ["NativeEngine"]
