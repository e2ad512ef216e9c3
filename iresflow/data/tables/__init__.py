"""Tables and densities of vectors."""
