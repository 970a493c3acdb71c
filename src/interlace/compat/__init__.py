"""Names of other tools over this library's own: code that was written for them runs here.

They are thin, and nothing else in the library knows them.
"""
