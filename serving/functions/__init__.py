"""What a function may look like, and the host process that serves a Python one.

`host` is a script that a function's process runs by path; nothing here imports it.
"""
