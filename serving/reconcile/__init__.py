"""The serving half's reconcilers: Service, Configuration, Revision and Route, a module each, all pure decisions.

The PodAutoscaler is reconciled by the autoscaler, which knows of demand and of instances; `podautoscaler` holds the
pure part, what its status says.
"""

from core.control.reconcile import Reconciler
from serving.reconcile.configuration import ConfigurationReconciler
from serving.reconcile.revision import RevisionReconciler
from serving.reconcile.route import RouteReconciler
from serving.reconcile.service import ServiceReconciler

__all__ = ["reconcilers"]


def reconcilers(*, url_suffix: str) -> tuple[Reconciler, ...]:
    """All of them. A Route's URL is ``http://<route>.<namespace><url_suffix>``, with a suffix such as
    ``.localhost:8080``."""
    return (
        ServiceReconciler(),
        ConfigurationReconciler(),
        RevisionReconciler(),
        RouteReconciler(url_suffix=url_suffix),
    )
