"""
Serving disks to tests: in this process (`host`), or by ``vhostblk serve`` in another (`process`).

This is our back-end's half of the test kit; the other one, `vhostblk.guest`, drives any back-end
and knows nothing of this.  As a plugin of pytest it brings the fixtures ``vhostblk_serve`` and
``vhostblk_spawn``.  See docs/how-to/test-with-the-fake-guest.md.
"""
