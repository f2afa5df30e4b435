"""The helper processes of a supervisor, and what they and the application say to each other.

Nothing here imports anything but the standard library, and imports between these modules are relative: the helper
processes load this folder as a package of its own, without nsorch and without ``site``.
"""
