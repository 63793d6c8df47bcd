"""What runs inside: each file is read as text and handed to a bare interpreter.

They import the standard library and one another, nothing else; see `balora.sandbox.scripts`.
"""
