"""The composition for Kubernetes: one process a role, each in pods of its own. `penstock cluster <role>` runs them."""
