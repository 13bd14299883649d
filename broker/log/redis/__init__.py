"""The event log on Redis Streams: for several processes that share their Brokers.

Import from the modules: only the process whose composition asks for Redis loads its client.
"""
