"""Desired state: the ResourceStore port and its adapters, and the loop that reconciles.

Import from the modules: an adapter's dependencies are loaded only by the process that uses it.
"""
