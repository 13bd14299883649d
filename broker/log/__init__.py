"""The event log: where accepted events are kept until everybody who wants them has them.

Import from the modules: an adapter's dependencies are loaded only by the process that uses it.
"""
