"""The event half: Brokers store CloudEvents durably, Triggers filter them and deliver them at least once."""
