"""The documentation says what the code does: compared in both directions, and every example admitted or compiled."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import click
import pytest
import yaml

from broker.cesql import ErrorKind, Expression
from broker.cesql.functions import FUNCTIONS
from broker.delivery import Outcome, Policy, RetryAt, decide
from broker.flow.settings import ANNOTATIONS, FLOW_GROUP, ORDER_KEYS, PLAIN
from broker.ledger import OUTCOMES
from core import limits
from core.resources import KindRef
from penstock.apiserver.admission import Place, admit, for_create, read_resource
from penstock.apiserver.yaml_loader import JsonLoader
from penstock.kinds import registry
from serving.instances.spec import instance_spec
from serving.resources import ROLLOUT_DURATION
from serving.scaling import _SPELLINGS, AUTOSCALING_GROUP, PROGRESS_DEADLINE, ScalingSettings
from tests.support import document
from tests.support.document import ROOT

PACKAGES = ("core", "broker", "sources", "serving", "penstock")
DOCS = ROOT / "docs"
PAGES = document.pages()
EXAMPLES = sorted((ROOT / "examples").rglob("manifests/*.yaml"))
KINDS = registry()


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """Every string constant of the code, with its file."""
    return tuple(
        (name_of(path), node.value)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def texts_in_code(pattern: str, *, within: str = "") -> set[str]:
    """The string constants of the code that are `pattern` as a whole; docstrings and messages never are."""
    wanted = re.compile(pattern)
    return {text for place, text in texts() if place.startswith(within) and wanted.fullmatch(text)}


def in_docs(pattern: str) -> set[str]:
    return {
        found for page in [ROOT / "README.md", *DOCS.glob("*.md")] for found in re.findall(pattern, page.read_text())
    }


def section(page: str, title: str) -> str:
    """The part of a page under one heading."""
    text = (DOCS / page).read_text()
    _, found, rest = text.partition(f"\n## {title}\n") if f"\n## {title}\n" in text else text.partition(f"# {title}\n")
    assert found, f"docs/{page} has no heading {title!r}"
    return rest.partition("\n## ")[0]


# ---- generated pages


def test_the_commands_page_is_what_the_commands_say():
    assert document.COMMANDS.read_text() == document.commands_page(), "run: python -m tests.support.document"


def test_the_commands_page_has_every_command_and_option():
    page = document.COMMANDS.read_text()
    for name, command in document.commands().items():
        own = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        options = {option for each in command.params if each.param_type_name == "option" for option in each.opts}
        assert options or isinstance(command, click.Group), name
        assert not {option for option in options if option not in own}, name


def test_limits_have_the_values_of_the_code():
    assert document.OPERATIONS.read_text() == document.operations_page(), "run: python -m tests.support.document"


def test_every_shared_limit_is_documented():
    shared = {f"core.limits.{name}" for name in vars(limits) if name.isupper()}
    assert shared <= document.limits().keys()


# ---- names in the code and in the pages


METRIC = re.compile(r"^\| `(penstock_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)


def test_every_metric_is_documented_and_no_other():
    documented = [name for name, _, _ in METRIC.findall((DOCS / "metrics.md").read_text())]
    assert len(documented) == len(set(documented))
    assert set(documented) == texts_in_code(r"penstock_[a-z0-9_]+[a-z0-9]")


def test_pages_name_only_metrics_that_exist():
    assert in_docs(r"\bpenstock_[a-z0-9_]+[a-z0-9]") <= texts_in_code(r"penstock_[a-z0-9_]+[a-z0-9]")


def test_metrics_have_the_type_that_their_name_tells():
    for name, kind, _ in METRIC.findall((DOCS / "metrics.md").read_text()):
        expected = "counter" if name.endswith("_total") else "histogram" if name.endswith("_seconds") else "gauge"
        assert kind == expected, name


def test_every_environment_variable_is_documented_and_no_other():
    # click makes the completion variable's name itself, from the command's.
    known = texts_in_code(r"PENSTOCK_[A-Z_]+") | {"_PENSTOCK_COMPLETE"}
    assert in_docs(r"\b_?PENSTOCK_[A-Z_]+") == known
    assert (
        set(re.findall(r"^\| `(_?PENSTOCK_\w+)`", section("operations.md", "Environment variables"), re.MULTILINE))
        == known
    )


def test_every_annotation_of_our_own_is_documented_and_no_other():
    assert in_docs(r"(?<![\w.])penstock\.dev/[a-z-]+") == texts_in_code(r"penstock\.dev/[a-z-]+")


def test_every_autoscaling_annotation_is_documented_and_no_other():
    text = section("serving.md", "Autoscaling")
    rows = re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(_SPELLINGS)
    older = {spelling for spellings in _SPELLINGS.values() for spelling in spellings} - set(rows)
    assert (
        set(re.findall(r"`([a-z]+[A-Z]\w+)`", text.partition("older spellings")[2].partition("are read")[0])) == older
    )
    used = {name.removeprefix(f"{AUTOSCALING_GROUP}/") for name in in_docs(rf"\b{AUTOSCALING_GROUP}/[a-z-]+")}
    assert used <= set(_SPELLINGS)


@pytest.mark.parametrize(
    ("annotation", "setting", "shown"),
    [
        ("min-scale", "min_scale", "{}"),
        ("max-scale", "max_scale", "{}"),
        ("initial-scale", "initial_scale", "{}"),
        ("target", "concurrency_target", "{:g}, for `rps` 200"),
        ("window", "stable_window_s", "{:g}s"),
        ("panic-window-percentage", "panic_window_percentage", "{:g}"),
        ("panic-threshold-percentage", "panic_threshold_percentage", "{:g}"),
        ("scale-down-delay", "scale_down_delay_s", "{:g}s"),
        ("scale-to-zero-pod-retention-period", "scale_to_zero_retention_s", "{:g}s"),
        ("target-burst-capacity", "target_burst_capacity", "{:g}"),
    ],
)
def test_autoscaling_defaults_are_those_of_the_code(annotation, setting, shown):
    row = re.search(rf"^\| `{annotation}` \| ([^|]*) \|", section("serving.md", "Autoscaling"), re.MULTILINE)
    assert row is not None
    assert row[1] == shown.format(getattr(ScalingSettings(), setting))


def test_every_other_annotation_and_label_that_a_person_sets_is_documented():
    texts = {
        "eventing.knative.dev/broker.class",
        "knative.dev/dependency",
        "networking.knative.dev/visibility",
        "kafkasources.sources.knative.dev/key-type",
        "serving.knative.dev/no-gc",
        PROGRESS_DEADLINE,
        ROLLOUT_DURATION,
    }
    assert texts <= in_docs(r"\b[a-z.]+\.dev/[a-z.-]+[a-z]")
    # What the platform itself puts on resources, and reads no more from people.
    own = {"serving.knative.dev/revisionUID", "messaging.knative.dev/subscribable"}
    assert texts_in_code(r"(?:[a-z]+\.)?knative\.dev/[A-Za-z-]+") <= texts | own


#: Where conditions and their reasons are decided.
DECIDING = (
    "broker/conditions.py",
    "broker/reconcile.py",
    "broker/reconcile_event_types.py",
    "broker/reconcile_flows.py",
    "broker/reconcile_messaging.py",
    "core/resources/destination.py",
    "serving/reconcile/",
    "serving/functions/detect.py",
    "serving/instances/kubernetes/deployment.py",
    "serving/instances/kubernetes/pods.py",
    "serving/instances/kubernetes/status.py",
    "serving/instances/kubernetes/template.py",
    "serving/instances/launch.py",
    "serving/instances/local.py",
    "serving/instances/spec.py",
    "sources/folder.py",
    "sources/harness.py",
    "sources/kafka/member.py",
    "sources/kafka/source.py",
    "sources/ping.py",
    "sources/reconcile.py",
)
#: CamelCase words there that are no conditions or reasons: names of kinds and of classes, parts of reasons, and words
#: of Kubernetes that are not passed on.
NOT_CONDITIONS = re.compile(
    r"\w+(?:Reconciler|Source|Runner|Processes|Function|Instances)|NotRecognised|PodAutoscaler|ExitCode|\w+Missing"
    r"|RollingUpdate|ReplicaFailure|PodScheduled|NoExecute|PodInitializing|ContainerCreating"
)


def test_every_condition_and_reason_is_documented():
    words = {word for place in DECIDING for word in texts_in_code(r"(?:[A-Z]+[a-z]+){2,}", within=place)}
    documented = in_docs(r"\b[A-Z][A-Za-z]+\b")
    assert {word for word in words if not NOT_CONDITIONS.fullmatch(word)} <= documented
    assert {word for word in words if word.endswith("Missing")} <= documented
    assert {"ExitCode1", "ConfigurationMissing", "RevisionMissing"} <= in_docs(r"\b[A-Z][A-Za-z]+\d*\b")


def test_reasons_in_tables_exist_in_the_code():
    known = texts_in_code(r"(?:[A-Z]+[a-z]+){2,}")
    # Put together in the code: from a kind's name, and from a constant that is not the whole text.
    known |= {"ConfigurationMissing", "RevisionMissing"} | {kind.ref.kind for kind in KINDS} | {"CloudEvent"}
    for page in (
        "brokers-and-triggers.md",
        "channels-and-flows.md",
        "event-types.md",
        "sources.md",
        "functions.md",
        "serving.md",
    ):
        rows = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("| ")]
        assert {word for row in rows for word in re.findall(r"`((?:[A-Z]+[a-z]+){2,})`", row)} <= known, page


def test_every_reason_of_the_broker_plane_is_reached_by_a_test():
    tested = "".join(path.read_text() for path in sorted((ROOT / "tests/unit").glob("test_broker_*.py")))
    for page in ("brokers-and-triggers.md", "channels-and-flows.md", "event-types.md"):
        rows = [line.split("|") for line in section(page, "Conditions").splitlines() if line.startswith("| ")]
        reasons = {word for row in rows for cell in row[1:3] for word in re.findall(r"`([A-Za-z]{6,})`", cell)}
        assert len(reasons) > 2
        assert {word for word in reasons if f'"{word}"' not in tested} == set(), page


def test_every_reason_of_the_gateway_is_documented_and_no_other():
    reasons = texts_in_code(r"[a-z]+(?:-[a-z]+)+|stopping", within="serving/lane.py")
    reasons |= texts_in_code(r"[a-z]+(?:-[a-z]+)+", within="serving/gateway.py")
    reasons |= texts_in_code(r"[a-z]+(?:-[a-z]+)+", within="serving/handover.py")
    reasons -= {"broker-ingress", "knative-eventing"}  # names of the Brokers' host
    table = (DOCS / "serving.md").read_text().partition("### The gateway's own answers")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \| \d+ \|", table, re.MULTILINE)) == reasons


def test_every_outcome_of_a_delivery_is_documented():
    rows = re.findall(r"^\| `([a-z-]+)` \|", section("delivery.md", "Outcomes"), re.MULTILINE)
    assert [row for row in rows if row in OUTCOMES] == list(OUTCOMES)


def test_every_annotation_of_flow_is_documented_with_its_default_and_no_other():
    rows = re.findall(
        r"^\| `(delivery\.penstock\.dev/[a-z-]+)` \| ([^|]*) \|", section("delivery.md", "Order and flow"), re.M
    )
    assert {name for name, _ in rows} == ANNOTATIONS
    assert in_docs(r"\bdelivery\.penstock\.dev/[a-z-]+") == ANNOTATIONS
    shown = dict(rows)
    assert shown[f"{FLOW_GROUP}/parallelism"] == str(PLAIN.parallelism)
    assert shown[f"{FLOW_GROUP}/batch"] == str(PLAIN.batch)
    assert shown[f"{FLOW_GROUP}/batch-wait"] == f"`{PLAIN.batch_wait_s:g}s`"
    assert shown[f"{FLOW_GROUP}/order-key"] == ", else ".join(f"`{name}`" for name in ORDER_KEYS)


def test_the_table_of_answers_is_that_of_the_code():
    rows = {
        code: again
        for line in re.findall(r"^\| ([0-9x, ]+) \| no \| (yes|no) \|$", section("delivery.md", "Answers"), re.M)
        for code, again in [(code.strip(), line[1]) for code in line[0].split(",")]
    }
    assert len(rows) > 6
    for status in range(100, 600):
        if 200 <= status < 300:
            continue
        told = rows.get(str(status)) or rows.get(f"{status // 100}xx") or rows_of(status)
        decision = decide(Outcome(status), 1, Policy(), 0.0, 0.0)
        assert isinstance(decision, RetryAt) == (told == "yes"), status


def rows_of(status: int) -> str:
    """The rows that name a range in words."""
    text = section("delivery.md", "Answers")
    row = r"^\| other 4xx \| no \| (yes|no) \|$" if status < 500 else r"^\| 5xx, and 600 to 999 \| no \| (yes|no) \|$"
    found = re.search(row, text, re.M)
    assert found is not None
    return found[1]


def test_every_function_and_error_of_cloudevents_sql_is_documented_and_no_other():
    text = section("filters.md", "CloudEvents SQL")
    rows = text.partition("### Functions")[2].partition("### ")[0]
    assert set(re.findall(r"`([A-Z_]+)\(", rows)) == FUNCTIONS.keys()
    told = {ErrorKind(kind) for kind in re.findall(r"^\| (\w+Error) \|", text, re.MULTILINE)}
    # What calls a function that there is not is refused.
    assert told == set(ErrorKind) - {ErrorKind.MISSING_FUNCTION}


def test_the_expressions_that_are_recommended_can_be_read_and_raise_no_doubts():
    rows = section("filters.md", "CloudEvents SQL").partition("| to get | write |")[2].partition("\n\n")[0]
    expressions = re.findall(r"`([^`]+)`", rows)
    assert len(expressions) >= 9
    assert [list(Expression(text).doubts()) for text in expressions] == [[]] * len(expressions)


def test_every_kind_is_documented():
    text = (DOCS / "api.md").read_text()
    for kind in KINDS:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{kind.ref.api_version}` |"))
        assert re.search(rf"\b{kind.ref.kind}\b", row), kind.ref
        assert all(f"`{name}`" in text for name in kind.short_names), kind.ref


def test_the_architecture_names_only_modules_that_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text().partition("## The rooms")[2].partition("## The three ports")[0]
    for paragraph in text.split("\n\n"):
        room = re.match(r"\*\*(\w+)/\*\* ", paragraph)
        for name in re.findall(r"`([a-z_]+)/?`", paragraph) if room else ():
            assert any((ROOT / room[1] / f"{name}{suffix}").exists() for suffix in ("", ".py")), f"{room[1]}/{name}"


# ---- links and examples


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_every_page_is_listed():
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text()))
    assert listed == {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    decisions = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "decisions/README.md").read_text()))
    assert decisions == {page.name for page in (DOCS / "decisions").glob("*.md")} - {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_has_a_hole(page):
    assert "@@" not in page.read_text()
    fences = re.findall(r"^```", page.read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(list(document.blocks(page)))


def written(language: str) -> list[object]:
    found = [(page, block) for page in PAGES for block in document.blocks(page) if block.language == language]
    assert found
    return [pytest.param(block.text, id=f"{name_of(page)}:{block.line}") for page, block in found]


MANIFESTS = [*written("yaml"), *(pytest.param(path.read_text(), id=name_of(path)) for path in EXAMPLES)]


@pytest.mark.parametrize("text", MANIFESTS)
def test_every_manifest_is_admitted(text):
    for found in yaml.load_all(text, JsonLoader):
        kind = KINDS.get(KindRef.parse(found["apiVersion"], found["kind"]))
        namespace = found["metadata"].get("namespace", "default") if kind.namespaced else ""
        reading = read_resource(found, kind, Place(namespace), "Strict")
        admitted = admit(for_create(reading.resource, kind), kind, None)
        if kind.ref.kind == "Service" and kind.ref.group == "serving.knative.dev":
            # What an instance is made of follows from the template as well.
            revision = admitted.with_spec(admitted.spec["template"]["spec"])
            assert instance_spec(revision).image


@pytest.mark.parametrize("text", written("python"))
def test_every_python_block_compiles(text):
    compile(text, "<documentation>", "exec")


@pytest.mark.parametrize("text", written("json"))
def test_every_json_block_can_be_read(text):
    assert json.loads(text)
