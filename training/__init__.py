"""Trains the embedded demo model on text that this package writes; no part of the installed library."""
