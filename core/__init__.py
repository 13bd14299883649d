"""The foundation: values, ports and the hot-path network code. Knows no Broker, no Source, no Revision."""
