"""
A data plane in readable Python: it explains the C core, and is what that is compared with.

Read `ring` (what a virtqueue does), `split` and `packed` (how), then `chain` (from descriptors to a
request), `service` (one visit of the worker), `queue` (who owns the ring), `engine` (the worker's
thread).
"""
