"""A real Apache Kafka for tests: `jars` fetches it once a machine, `server` starts, pauses, kills and stops it."""
