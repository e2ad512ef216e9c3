"""Rigorous upper bounds of operator norms: all that may be called certified."""
