"""The roof: the command line, the API server, and the composition roots, the only places that construct."""

__version__ = "0.1.0"
