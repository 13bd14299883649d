import pytest

from core.clock import rfc3339
from core.resources import Column, Kind, KindRef, ObjectMeta, Resource
from penstock.apiserver.tables import age, table

NOW_S = 1_700_000_000.0
MINUTE, HOUR, DAY, YEAR = 60, 3_600, 86_400, 31_536_000


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (119, "119s"),
        (2 * MINUTE, "2m"),
        (3 * MINUTE + 4, "3m4s"),
        (10 * MINUTE + 59, "10m"),
        (179 * MINUTE, "179m"),
        (3 * HOUR, "3h"),
        (3 * HOUR + 5 * MINUTE, "3h5m"),
        (8 * HOUR + 5 * MINUTE, "8h"),
        (47 * HOUR, "47h"),
        (2 * DAY + 5 * HOUR, "2d5h"),
        (8 * DAY + 5 * HOUR, "8d"),
        (2 * YEAR - 1, "729d"),
        (2 * YEAR + 3 * DAY, "2y3d"),
        (9 * YEAR + 3 * DAY, "9y"),
        (-30, "0s"),
    ],
)
def test_an_age_is_told_as_kubectl_tells_it(seconds, shown):
    meta = ObjectMeta(name="a", creation_timestamp=rfc3339(NOW_S - seconds))
    assert age(Resource(ref=KindRef("g", "v1", "K"), meta=meta, body={}), NOW_S) == shown


@pytest.mark.parametrize(
    ("path", "cell"),
    [
        (".spec.size", 3),
        (".spec.missing.deeper", None),
        (".spec.size.deeper", None),
        (".spec.on", "true"),
        (".spec.names", "a,b"),
        (".spec.map", '{"k":1}'),
        (".status.conditions[Ready].status", "True"),
        (".status.conditions[Absent].status", None),
        (".spec.ports[0].port", 80),
        (".spec.ports[9].port", None),
        (".spec.ports[http].port", 80),
        (".metadata.labels[x.y/z]", "v"),
        (".metadata.namespace", "default"),
        (".lastTimestamp", "10s"),
    ],
)
def test_a_column_shows_what_its_path_leads_to(path, cell):
    resource = Resource(
        ref=KindRef("g", "v1", "K"),
        meta=ObjectMeta(name="a", namespace="default", labels={"x.y/z": "v"}),
        body={
            "spec": {
                "size": 3,
                "on": True,
                "names": ["a", "b"],
                "map": {"k": 1},
                "ports": [{"name": "http", "port": 80}],
            },
            "status": {"conditions": [{"type": "Other"}, {"type": "Ready", "status": "True"}]},
            "lastTimestamp": rfc3339(NOW_S - 10),
        },
    )
    kind = Kind(ref=resource.ref, plural="ks", singular="k", columns=(Column(name="Shown", path=path, wide=True),))
    shown = table(kind, [resource], now=NOW_S, meta={})
    assert [one["name"] for one in shown["columnDefinitions"]] == ["Name", "Shown", "Age"]
    assert [one["priority"] for one in shown["columnDefinitions"]] == [0, 1, 0]
    assert shown["rows"][0]["cells"] == ["a", cell, "<unknown>"]
