"""Running instances of a Revision: the Instances port, the local processes that implement it, and the fake.

Import from the modules: an adapter's dependencies are loaded only by the process that uses it.
"""
