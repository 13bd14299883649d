"""The EventLog on Apache Kafka: `log` for the processes that append and deliver, `query` for people."""
