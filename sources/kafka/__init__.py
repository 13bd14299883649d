"""KafkaSource: the records of Kafka's topics as events, read as a member of a consumer group.

`resources` is the kind, `records` what event a record is, `progress` how far a partition is done, `access` how to reach
the brokers, `port` what is needed of a group's member, and `source` what is done with it. Only `member` imports
aiokafka, and only a platform that has a KafkaSource imports `member`.
"""
