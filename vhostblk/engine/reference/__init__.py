"""
A data plane in readable Python: it explains the C core, and is what that is compared with.

Read `ring` (the split virtqueue), then `chain` (from descriptors to a request), `queue` (who owns
the ring, and one visit of the worker), `engine` (the worker's thread).
"""
