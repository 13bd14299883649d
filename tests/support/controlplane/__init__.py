"""A real Kubernetes control plane for tests: etcd, kube-apiserver and kube-controller-manager.

`build` makes the programs, kubectl and helm as well, once a machine, `pki` the keys and certificates, `servers` starts,
pauses, kills and stops them, `access` is what a client needs to know. There are no nodes.
"""
