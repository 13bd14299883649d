"""Nodes for tests: what a kubelet, a scheduler, kube-proxy and the cluster's DNS do, as far as tests can tell.

A pod's containers are local processes in a network namespace of the pod's own and a file system of the container's own
(an overlay of the machine's). An image is a row in a table that the test gives: pattern, command, environment.
All of it runs inside ``tests.support.netns``.

`cluster` starts everything. `agent` is the kubelet's process: `scheduling` and `lifecycle` decide, `pod` carries out,
`container`, `sandbox`, `rootfs`, `volumes` and `probes` do the work, `logs` answers ``kubectl logs``. `network` is the
other process: `services` is the table, `proxy` forwards to ready endpoints, `dns` answers.

Not done: cgroups (no limit is enforced), capabilities, NetworkPolicies, ``kubectl exec`` and ``port-forward``,
NodePorts, volumes that need a driver (a claim is a folder). Users and groups are real where root runs the tests.
"""
