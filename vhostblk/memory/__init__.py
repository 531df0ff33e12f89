"""Guest memory: the mappings, the regions a front-end names, the address space they make."""
