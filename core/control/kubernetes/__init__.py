"""The ResourceStore on the Kubernetes API. Nothing else in core imports the package `kubernetes`: it costs 48 MB and
half a second, which a process on one machine must not pay."""
