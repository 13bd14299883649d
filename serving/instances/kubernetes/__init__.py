"""Instances as pods: a Deployment for each Revision, scaled by the autoscaler.

It works on the resource store; only `client`, which reads logs, knows the Kubernetes client.
"""
