"""The hot path: an HTTP/1.1 server and a pooled client as asyncio Protocols on uvloop, parsed by httptools (llhttp)."""
