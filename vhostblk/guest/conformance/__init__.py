"""
Tests that any vhost-user-blk back-end should pass.

Against one that runs: ``pytest --pyargs vhostblk.guest.conformance --vhostblk-socket PATH``; what
writes is skipped without ``--vhostblk-destroy``.  In a project's own tests: ``from
vhostblk.guest.conformance.suite import *``, with the fixture ``vhostblk_socket`` overridden.

Each test names the clause it holds the back-end to.  What a back-end does not offer is skipped.
"""
