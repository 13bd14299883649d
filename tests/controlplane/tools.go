//go:build tools

// Package tools names the programs that the cluster tests run, so that go.mod pins them and all they are built from.
// k8s.io/kubernetes refers to its staging modules as v0.0.0: go.mod replaces each by the release of the same number.
package tools

import (
	_ "helm.sh/helm/v3/cmd/helm"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
)
