"""Each reconciler's decisions, on a view that a test fills; the whole flow is in test_serving_autoscaler.py."""

from itertools import count

import pytest

from core.clock import rfc3339
from core.control.index import Index
from core.control.reconcile import Apply, Delete
from core.resources import Key, ObjectMeta, Registry, Resource, is_ready, owner_reference
from serving.reconcile.configuration import ConfigurationReconciler
from serving.reconcile.revision import RevisionReconciler
from serving.reconcile.route import RouteReconciler
from serving.reconcile.service import ServiceReconciler
from serving.resources import CONFIGURATION, KINDS, POD_AUTOSCALER, REVISION, ROUTE, SERVICE

REGISTRY = Registry(KINDS)
NOW = 1_700_000_000.0
uids = count(1)


class World(Index):
    """A view that can be written to, and carries out decisions."""

    def add(self, ref, name, spec, *, labels=None, annotations=None, owner=None, status=None, generation=1):
        meta = ObjectMeta(
            name=name,
            namespace="default",
            uid=f"uid-{next(uids)}",
            generation=generation,
            labels=labels or {},
            annotations=annotations or {},
            owner_references=(owner_reference(owner),) if owner else (),
        )
        made = REGISTRY.get(ref).default(Resource(ref=ref, meta=meta, body={"spec": spec}))
        made = made.with_meta(uid=meta.uid)
        if status is not None:
            made = made.with_status({"observedGeneration": generation, **status})
        self.put(made)
        return made

    def at(self, ref, name):
        return self.get(Key(ref, "default", name))

    def decide(self, reconciler, resource):
        """Decide and carry out, as the loop would."""
        held = self.get(resource.key)
        outcome = reconciler.decide(held, self, NOW)
        for action in outcome.actions:
            assert isinstance(action, Apply)
            self.apply(action.resource)
        if outcome.status is not None:
            self.put(self.get(resource.key).with_status(outcome.status))
        return self.get(resource.key)

    def apply(self, wanted):
        held = self.get(wanted.key)
        if held is None:
            self.put(wanted.with_meta(uid=f"uid-{next(uids)}", generation=1))
        elif held.spec != wanted.spec:
            changed = held.with_spec(wanted.spec)
            self.put(changed.with_meta(generation=held.meta.generation + 1))

    def set_status(self, resource, **fields):
        held = self.get(resource.key)
        self.put(held.with_status({"observedGeneration": held.meta.generation, **fields}))


def ready(status="True", reason="", message="", kind="Ready"):
    return {"type": kind, "status": status, "reason": reason, "message": message}


def condition(resource, name):
    entry = next(one for one in resource.status["conditions"] if one["type"] == name)
    return entry["status"], entry.get("reason", "")


TEMPLATE = {"spec": {"containers": [{"image": "example.com/hello"}]}}


@pytest.fixture
def world():
    return World()


# Service


def test_a_service_makes_a_configuration_and_a_route_of_its_name(world):
    annotations = {"note": "mine", "kubectl.kubernetes.io/last-applied-configuration": "{}"}
    made = world.add(SERVICE, "hello", {"template": TEMPLATE}, labels={"team": "a"}, annotations=annotations)
    status = world.decide(ServiceReconciler(), made)
    configuration, route = world.at(CONFIGURATION, "hello"), world.at(ROUTE, "hello")
    assert configuration.spec == {"template": made.spec["template"]}
    assert route.spec == {"traffic": [{"latestRevision": True, "percent": 100, "configurationName": "hello"}]}
    for child in (configuration, route):
        assert child.meta.owner_references == (owner_reference(made),)
        assert child.meta.labels["serving.knative.dev/service"] == "hello"
        assert child.meta.labels["team"] == "a"
        assert child.meta.annotations == {"note": "mine"}
    assert configuration.meta.labels["serving.knative.dev/serviceUID"] == made.meta.uid
    assert condition(status, "Ready") == ("Unknown", "OutOfDate")


def test_a_pinned_target_keeps_its_revision(world):
    traffic = [{"revisionName": "hello-1", "percent": 50}, {"percent": 50}]
    made = world.add(SERVICE, "hello", {"template": TEMPLATE, "traffic": traffic})
    world.decide(ServiceReconciler(), made)
    targets = world.at(ROUTE, "hello").spec["traffic"]
    assert [target.get("configurationName") for target in targets] == [None, "hello"]


def grown(world, *, configuration="True", route="True", latest="hello-00001", serving="hello-00001"):
    """A Service whose children have reported."""
    made = world.add(SERVICE, "hello", {"template": TEMPLATE})
    world.decide(ServiceReconciler(), made)
    world.set_status(
        world.at(CONFIGURATION, "hello"),
        conditions=[ready(configuration, "RevisionFailed" if configuration == "False" else "")],
        latestCreatedRevisionName=latest,
        latestReadyRevisionName=latest,
    )
    traffic = [{"revisionName": serving, "percent": 100, "latestRevision": True}]
    address = {"url": "http://hello.default.svc.cluster.local"}
    world.set_status(
        world.at(ROUTE, "hello"), conditions=[ready(route)], url="http://hello", address=address, traffic=traffic
    )
    return made


def test_a_services_status_is_its_childrens(world):
    status = world.decide(ServiceReconciler(), grown(world))
    assert condition(status, "Ready") == ("True", "")
    assert status.status["observedGeneration"] == 1
    assert status.status["latestReadyRevisionName"] == "hello-00001"
    assert status.status["url"] == "http://hello"
    assert status.status["address"] == {"url": "http://hello.default.svc.cluster.local"}
    assert status.status["traffic"][0]["revisionName"] == "hello-00001"
    assert is_ready(status.status, 1) == "True"


def test_a_failed_configuration_makes_the_service_fail_with_its_reason(world):
    status = world.decide(ServiceReconciler(), grown(world, configuration="False"))
    assert condition(status, "Ready") == ("False", "RevisionFailed")


def test_a_service_is_not_ready_before_traffic_is_where_it_should_be(world):
    status = world.decide(ServiceReconciler(), grown(world, latest="hello-00002", serving="hello-00001"))
    assert condition(status, "RoutesReady") == ("Unknown", "TrafficNotMigrated")


def test_children_of_others_are_left_alone(world):
    world.add(CONFIGURATION, "hello", {"template": TEMPLATE})
    world.add(ROUTE, "hello", {"traffic": [{"revisionName": "x", "percent": 100}]})
    made = world.add(SERVICE, "hello", {"template": {"spec": {"containers": [{"image": "other"}]}}})
    status = world.decide(ServiceReconciler(), made)
    assert condition(status, "ConfigurationsReady") == ("False", "NotOwned")
    assert condition(status, "RoutesReady") == ("False", "NotOwned")
    assert world.at(CONFIGURATION, "hello").spec["template"]["spec"]["containers"][0]["image"] == "example.com/hello"


def test_a_named_revision_that_is_taken_keeps_traffic_where_it_is(world):
    named = {**TEMPLATE, "metadata": {"name": "hello-one"}}
    made = world.add(SERVICE, "hello", {"template": named})
    world.decide(ServiceReconciler(), made)
    assert world.at(ROUTE, "hello") is None
    world.add(REVISION, "hello-one", {"containers": [{"image": "somebody-else"}]})
    world.set_status(world.at(CONFIGURATION, "hello"), conditions=[ready("False", "RevisionFailed")])
    status = world.decide(ServiceReconciler(), made)
    assert condition(status, "RoutesReady") == ("False", "RevisionNameTaken")
    assert world.at(ROUTE, "hello") is None


# Configuration


def configured(world, generation=1, template=TEMPLATE, **status):
    labels = {"serving.knative.dev/service": "hello", "serving.knative.dev/serviceUID": "s1"}
    return world.add(
        CONFIGURATION, "hello", {"template": template}, labels=labels, generation=generation, status=status or None
    )


def test_a_configuration_makes_a_revision_of_its_generation(world):
    template = {"metadata": {"annotations": {"a": "b"}, "labels": {"l": "m"}}, **TEMPLATE}
    made = configured(world, generation=7, template=template)
    status = world.decide(ConfigurationReconciler(), made)
    revision = world.at(REVISION, "hello-00007")
    assert revision.spec == made.spec["template"]["spec"]
    assert revision.meta.annotations == {"a": "b"}
    assert revision.meta.labels == {
        "l": "m",
        "serving.knative.dev/configuration": "hello",
        "serving.knative.dev/configurationGeneration": "7",
        "serving.knative.dev/configurationUID": made.meta.uid,
        "serving.knative.dev/service": "hello",
        "serving.knative.dev/serviceUID": "s1",
    }
    assert revision.meta.owner_references == (owner_reference(made),)
    assert status.status["latestCreatedRevisionName"] == "hello-00007"
    assert "latestReadyRevisionName" not in status.status
    assert condition(status, "Ready") == ("Unknown", "")
    assert [one["type"] for one in status.status["conditions"]] == ["Ready"]


def revision_of(world, configuration, generation, state="Unknown", **more):
    name = f"hello-{generation:05d}"
    labels = {
        "serving.knative.dev/configuration": "hello",
        "serving.knative.dev/configurationGeneration": str(generation),
        "serving.knative.dev/service": "hello",
    }
    status = {"conditions": [ready(state, "ExitCode1" if state == "False" else "", "it broke")]}
    return world.add(REVISION, name, TEMPLATE["spec"], labels=labels, owner=configuration, status=status, **more)


def test_the_latest_ready_revision_moves_only_to_one_that_is_ready(world):
    made = configured(world, generation=2)
    revision_of(world, made, 1, "True")
    second = revision_of(world, made, 2, "Unknown")
    status = world.decide(ConfigurationReconciler(), made)
    assert (status.status["latestCreatedRevisionName"], status.status["latestReadyRevisionName"]) == (
        "hello-00002",
        "hello-00001",
    )
    assert condition(status, "Ready") == ("Unknown", "")
    world.set_status(second, conditions=[ready()])
    status = world.decide(ConfigurationReconciler(), made)
    assert status.status["latestReadyRevisionName"] == "hello-00002"
    assert condition(status, "Ready") == ("True", "")


def test_a_failed_revision_is_told_and_the_ready_one_stays(world):
    made = configured(world, generation=2)
    revision_of(world, made, 1, "True")
    revision_of(world, made, 2, "False")
    status = world.decide(ConfigurationReconciler(), made)
    assert condition(status, "Ready") == ("False", "RevisionFailed")
    assert status.status["latestReadyRevisionName"] == "hello-00001"
    assert "it broke" in next(one for one in status.status["conditions"])["message"]


def test_the_latest_ready_revision_never_goes_back(world):
    made = configured(world, generation=2, latestReadyRevisionName="hello-00002")
    revision_of(world, made, 1, "True")
    revision_of(world, made, 2, "False")
    assert world.decide(ConfigurationReconciler(), made).status["latestReadyRevisionName"] == "hello-00002"


def test_a_deleted_revision_of_the_current_generation_is_made_again(world):
    made = configured(world, generation=2, latestReadyRevisionName="hello-00002")
    world.decide(ConfigurationReconciler(), made)
    assert world.at(REVISION, "hello-00002") is not None


def test_a_name_that_is_taken_is_told(world):
    made = configured(world, template={"metadata": {"name": "hello-one"}, **TEMPLATE})
    world.add(REVISION, "hello-one", {"containers": [{"image": "somebody-else"}]})
    assert condition(world.decide(ConfigurationReconciler(), made), "Ready") == ("False", "RevisionFailed")


def test_old_revisions_without_traffic_are_deleted_but_for_the_last_twenty(world):
    made = configured(world, generation=30, latestReadyRevisionName="hello-00030")
    for number in range(1, 31):
        held = revision_of(world, made, number, "True")
        days = 1 if number == 4 else 5
        keep = {"serving.knative.dev/no-gc": "true"} if number == 2 else {}
        world.put(held.with_meta(creation_timestamp=rfc3339(NOW - days * 86_400), annotations=keep))
    routed(world, LATEST, {"revisionName": "hello-00003", "tag": "old"})
    outcome = ConfigurationReconciler().decide(world.at(CONFIGURATION, "hello"), world, NOW)
    deleted = [action.key.name for action in outcome.actions if isinstance(action, Delete)]
    # 27 have no traffic and may be deleted; the seven oldest of them are over the limit, and one of those is young.
    assert deleted == [f"hello-{number:05d}" for number in (1, 5, 6, 7, 8, 9)]


# Route


def routed(world, *targets, labels=None, generation=1, **status):
    return world.add(
        ROUTE, "hello", {"traffic": list(targets)}, labels=labels, generation=generation, status=status or None
    )


LATEST = {"configurationName": "hello", "percent": 100}


def decide_route(world, route):
    return world.decide(RouteReconciler(url_suffix=".localhost:8080"), route)


def test_a_route_leads_to_the_latest_ready_revision(world):
    made = configured(world, latestReadyRevisionName="hello-00001")
    revision_of(world, made, 1, "True")
    route = decide_route(world, routed(world, LATEST))
    assert route.status["traffic"] == [{"latestRevision": True, "percent": 100, "revisionName": "hello-00001"}]
    assert route.status["url"] == "http://hello.default.localhost:8080"
    assert route.status["address"] == {"url": "http://hello.default.svc.cluster.local"}
    assert condition(route, "Ready") == ("True", "")
    assert condition(route, "CertificateProvisioned") == ("True", "TLSNotEnabled")
    assert condition(route, "AllTrafficAssigned") == ("True", "")
    assert condition(route, "IngressReady") == ("True", "")


def test_tags_have_urls_of_their_own_and_equal_targets_are_joined(world):
    made = configured(world, latestReadyRevisionName="hello-00002")
    revision_of(world, made, 1, "True")
    revision_of(world, made, 2, "True")
    old = {"revisionName": "hello-00001", "percent": 20}
    route = decide_route(
        world, routed(world, {**LATEST, "percent": 60}, old, old, {"revisionName": "hello-00001", "tag": "old"})
    )
    assert route.status["traffic"] == [
        {"latestRevision": True, "percent": 60, "revisionName": "hello-00002"},
        {"latestRevision": False, "percent": 40, "revisionName": "hello-00001"},
        {
            "latestRevision": False,
            "percent": 0,
            "revisionName": "hello-00001",
            "tag": "old",
            "url": "http://old-hello.default.localhost:8080",
        },
    ]


def test_a_cluster_local_route_has_a_cluster_url(world):
    made = configured(world, latestReadyRevisionName="hello-00001")
    revision_of(world, made, 1, "True")
    route = decide_route(world, routed(world, LATEST, labels={"networking.knative.dev/visibility": "cluster-local"}))
    assert route.status["url"] == "http://hello.default.svc.cluster.local"


BEFORE = [{"latestRevision": True, "percent": 100, "revisionName": "hello-00000"}]


@pytest.mark.parametrize(
    ("target", "configuration", "state", "expected"),
    [
        pytest.param(LATEST, None, None, ("False", "ConfigurationMissing"), id="no configuration"),
        pytest.param(LATEST, {}, None, ("Unknown", "RevisionMissing"), id="no revision yet"),
        pytest.param(
            LATEST, {"conditions": [ready("False")]}, None, ("False", "RevisionMissing"), id="the first revision failed"
        ),
        pytest.param(
            LATEST,
            {"latestReadyRevisionName": "hello-00001"},
            "False",
            ("False", "RevisionMissing"),
            id="the ready revision failed later",
        ),
        pytest.param(
            {"revisionName": "hello-00001", "percent": 100},
            {},
            "Unknown",
            ("Unknown", "RevisionMissing"),
            id="a pinned revision starts",
        ),
        pytest.param(
            {"revisionName": "hello-00009", "percent": 100},
            {},
            None,
            ("False", "RevisionMissing"),
            id="no such revision",
        ),
    ],
)
def test_traffic_stays_where_it_was_until_every_target_is_ready(world, target, configuration, state, expected):
    if configuration is not None:
        made = configured(world, **configuration)
        if state is not None:
            revision_of(world, made, 1, state)
    route = decide_route(world, routed(world, target, traffic=BEFORE, conditions=[ready(kind="IngressReady")]))
    assert condition(route, "AllTrafficAssigned") == expected
    assert condition(route, "Ready") == expected
    assert route.status["traffic"] == BEFORE


def test_a_services_route_cannot_lead_to_another_services_revision(world):
    made = configured(world)
    revision_of(world, made, 1, "True")
    pinned = {"revisionName": "hello-00001", "percent": 100}
    route = decide_route(world, routed(world, pinned, labels={"serving.knative.dev/service": "other"}))
    assert condition(route, "AllTrafficAssigned") == ("False", "RevisionNotOwned")


# Revision


def scaled(world, revision, *conditions, **status):
    world.set_status(world.at(POD_AUTOSCALER, revision.meta.name), conditions=list(conditions), **status)
    return world.decide(RevisionReconciler(), revision)


ACTIVE = ready(kind="Active")
STARTED = ready(kind="ScaleTargetInitialized")
CRASHING = ready("False", "ExitCode1", "ImportError", kind="ContainerHealthy")
NOT_MAPPED = ready("False", "ImageNotMapped", "annotate it", kind="ContainerHealthy")
NOT_STARTED = ready("Unknown", kind="ScaleTargetInitialized")


def test_a_revision_asks_to_be_scaled(world):
    made = configured(world)
    annotations = {"autoscaling.knative.dev/min-scale": "1", "penstock.dev/source": "x"}
    revision = revision_of(world, made, 1, annotations=annotations)
    found = world.decide(RevisionReconciler(), revision)
    scaler = world.at(POD_AUTOSCALER, "hello-00001")
    assert scaler.spec == {
        "scaleTargetRef": {"apiVersion": "serving.knative.dev/v1", "kind": "Revision", "name": "hello-00001"},
        "protocolType": "http1",
    }
    assert scaler.meta.annotations == {
        "autoscaling.knative.dev/min-scale": "1",
        "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
    }
    assert scaler.meta.labels["serving.knative.dev/revision"] == "hello-00001"
    assert scaler.meta.owner_references == (owner_reference(revision),)
    assert condition(found, "Ready") == ("Unknown", "Deploying")
    assert list(REGISTRY.get(POD_AUTOSCALER).validate(scaler, None)) == []


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        pytest.param(
            [ready(), ACTIVE, STARTED],
            {"Ready": ("True", ""), "Active": ("True", ""), "ContainerHealthy": ("True", "")},
            id="serving",
        ),
        pytest.param(
            [ready("False", "NoTraffic"), ready("False", "NoTraffic", kind="Active"), STARTED],
            {"Ready": ("True", ""), "Active": ("False", "NoTraffic"), "ResourcesAvailable": ("True", "")},
            id="at zero it is ready",
        ),
        pytest.param(
            [ready("Unknown", "Queued"), ready("Unknown", "Queued", kind="Active"), NOT_STARTED],
            {"Ready": ("Unknown", "Deploying"), "Active": ("Unknown", "Queued")},
            id="starting for the first time",
        ),
        pytest.param(
            [ready("False", "TimedOut"), ready("False", "TimedOut", kind="Active"), NOT_STARTED],
            {"Ready": ("False", "ProgressDeadlineExceeded")},
            id="never started",
        ),
        pytest.param(
            [ready("False", "NoTraffic"), ready("False", "NoTraffic", kind="Active"), NOT_STARTED],
            {"Ready": ("Unknown", "Deploying")},
            id="replaced before it started",
        ),
        pytest.param(
            [
                ready("Unknown"),
                ready("Unknown", "Queued", kind="Active"),
                NOT_STARTED,
                ready("False", "ExitCode1", "ImportError", kind="ContainerHealthy"),
            ],
            {"Ready": ("False", "ExitCode1"), "ContainerHealthy": ("False", "ExitCode1")},
            id="crashing",
        ),
        pytest.param(
            [
                ready("False"),
                ready("False", "NoTraffic", kind="Active"),
                STARTED,
                ready("False", "ImageNotMapped", "annotate it", kind="ContainerHealthy"),
            ],
            {"Ready": ("False", "ImageNotMapped")},
            id="nothing to run",
        ),
    ],
)
def test_a_revisions_conditions_follow_from_how_it_is_scaled(world, conditions, expected):
    revision = revision_of(world, configured(world), 1)
    world.decide(RevisionReconciler(), revision)
    found = scaled(world, revision, *conditions, actualScale=1, desiredScale=2)
    assert {name: condition(found, name) for name in expected} == expected
    assert (found.status["actualReplicas"], found.status["desiredReplicas"]) == (1, 2)


def reachability(world, revision):
    world.decide(RevisionReconciler(), revision)
    return world.at(POD_AUTOSCALER, revision.meta.name).spec.get("reachability", "")


def test_reachable_is_what_a_route_names_or_is_about_to(world):
    made = configured(
        world, generation=3, latestCreatedRevisionName="hello-00003", latestReadyRevisionName="hello-00002"
    )
    old, latest_ready, created = (revision_of(world, made, number, "True") for number in (1, 2, 3))
    assert [reachability(world, one) for one in (old, latest_ready, created)] == ["Unreachable", "Unreachable", ""]
    routed(world, LATEST)
    expected = ["Unreachable", "Reachable", "Reachable"]
    assert [reachability(world, one) for one in (old, latest_ready, created)] == expected
    routed(world, {**LATEST, "percent": 90}, {"revisionName": "hello-00001", "percent": 10})
    assert reachability(world, old) == "Reachable"


def test_a_revision_that_still_has_traffic_is_reachable(world):
    made = configured(world, latestCreatedRevisionName="hello-00002", latestReadyRevisionName="hello-00002")
    old = revision_of(world, made, 1, "True")
    routed(world, LATEST, traffic=[{"revisionName": "hello-00001", "percent": 100}])
    assert reachability(world, old) == "Reachable"


@pytest.mark.parametrize(
    ("reconciler", "changed", "expected"),
    [
        (RouteReconciler(url_suffix=""), "configuration", {(ROUTE, "hello")}),
        (RouteReconciler(url_suffix=""), "revision", {(ROUTE, "hello")}),
        (RevisionReconciler(), "route", {(REVISION, "hello-00001")}),
        (RevisionReconciler(), "configuration", {(REVISION, "hello-00001")}),
        (ConfigurationReconciler(), "revision", {(CONFIGURATION, "hello")}),
        (ServiceReconciler(), "revision", {(SERVICE, "hello")}),
    ],
    ids=lambda value: (
        type(value).__name__ if hasattr(value, "decide") else str(value) if isinstance(value, str) else ""
    ),
)
def test_a_change_is_looked_at_where_it_matters(world, reconciler, changed, expected):
    configuration = configured(world)
    revision = revision_of(world, configuration, 1)
    route = routed(world, LATEST)
    resource = {"configuration": configuration, "revision": revision, "route": route}[changed]
    found = {(key.kind, key.name) for key in reconciler.related[resource.ref](resource, world)}
    assert found == expected


@pytest.mark.parametrize(
    "reconciler", [ServiceReconciler(), ConfigurationReconciler()], ids=["service", "configuration"]
)
def test_what_is_being_deleted_is_left_alone(world, reconciler):
    made = world.add(reconciler.kind, "hello", {"template": TEMPLATE})
    outcome = reconciler.decide(made.with_meta(deletion_timestamp="2026-01-01T00:00:00Z"), world, NOW)
    assert (outcome.actions, outcome.status) == ((), None)
