"""Programs that run in a process of their own, by their path: ``python FILE``.

They lie apart because Python looks for modules in the folder of a program first, and import nothing
of balora's, which would bring torch with it.
"""
