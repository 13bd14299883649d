"""The embedded API server: the Kubernetes REST protocol on a ResourceStore.

A request's way: `app` (routes, trust boundary, errors of routers) -> `rest` (which verb) -> `reading`, `writing`,
`deleting`, `watching` (the verbs, the only modules that wait for the store). What they decide is pure: `paths`, `media`
(with `protobuf`, `yaml_loader`), `admission` (with `shapes`, `metadata`), `patches`, `applying`, `selectors`, `tables`,
`statuses`. What clients learn about kinds is in `discovery` and `openapi` (with `gnostic`).
"""
