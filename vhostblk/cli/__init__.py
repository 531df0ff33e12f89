"""Arguments become objects; what a person sees."""
