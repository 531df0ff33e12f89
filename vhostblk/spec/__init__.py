"""Numbers and layouts of the standards; nothing here runs."""
