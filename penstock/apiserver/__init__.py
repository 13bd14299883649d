"""The embedded API server: the Kubernetes REST protocol on a ResourceStore."""
