"""vhost-user without I/O: bytes and file descriptors in, messages out, and back."""
