"""virtio-blk semantics: what we offer, the config space, the parsing of requests."""
