"""`cityward store`: a node's copies in a real OpenSearch, as a person looks after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cityward import ConfigError
from siem import assembly, config
from siem.clusters import dead_letters_of, mirror_of, password_of
from siem.node import now_utc
from siem.store.mirror import State, in_words
from siem.store.protocol_cluster import Write
from tests.opensearch import Server
from tests.siem.test_commands import Run, made, node, run  # noqa: F401 – fixtures

URL = "https://search.example:9200"


@pytest.fixture
def settings(
    node: Path,  # noqa: F811
    opensearch: Server,
    index_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A node that has read a log, with a cluster in its settings."""
    monkeypatch.setenv("CITYWARD_TEST_PASSWORD", opensearch.password)
    with node.open("a") as file:
        file.write(
            f'\n[cluster]\nurl = "{opensearch.url}"\nuser = "{opensearch.user}"\n'
            f'secret_env = "CITYWARD_TEST_PASSWORD"\nca_file = "{opensearch.ca_file}"\n'
            f'prefix = "{index_prefix}"\n'
        )
    return node


def _copy(settings: Path) -> None:
    """What the thread of `cityward run` does."""
    own = assembly.node_of(config.load(settings))
    mirror = mirror_of(config.load(settings), own)
    assert mirror is not None
    while mirror.copy():
        pass
    mirror.stop()
    own.close()


@pytest.mark.slow
def test_a_node_s_copies_are_made_compared_and_complete(run: Run, settings: Path) -> None:  # noqa: F811
    begun = run("store", "init", "-c", str(settings))
    before = run("store", "verify", "-c", str(settings))
    _copy(settings)
    after = run("store", "verify", "-c", str(settings))
    doctor = run("doctor", "-c", str(settings))

    assert begun.code == 0, begun.err
    assert "opensearch 2.19.4" in begun.out
    assert "the cluster has no Index State Management" in begun.out
    assert before.code == 3
    assert {row["what"]: row["state"] for row in before.rows} == {
        "templates": "ok",
        "dead letters": "ok",
        "findings": "1 are missing",
        "events": "8 are missing",
    }
    assert after.code == 0, after.out
    assert [(row["here"], row["there"]) for row in after.rows][2:] == [(1, 1), (8, 8)]
    said = {row["check"]: row["what"] for row in doctor.rows}
    assert str(said["cluster"]).startswith("opensearch 2.19.4 is ")
    assert str(said["copies"]).startswith("opensearch 2.19.4, copied ")


@pytest.mark.slow
def test_what_was_refused_is_shown_and_sent_again(
    run: Run,  # noqa: F811
    settings: Path,
    index_prefix: str,
) -> None:
    dead = dead_letters_of(config.load(settings))
    index = f"{index_prefix}-events-op-x-2026.03"
    good, bad = Write(index, "1", b'{"a":1}'), Write(index, "2", b'{"ot.is_command":"perhaps"}')
    dead.add([(one.lines(), "mapper_parsing_exception", "why") for one in (good, bad)])
    run("store", "init", "-c", str(settings))

    shown = run("store", "replay", "--show", "-c", str(settings))
    sent = run("store", "replay", "-c", str(settings))
    doctor = run("doctor", "-c", str(settings))

    assert [(row["index"], row["id"], row["reason"]) for row in shown.rows] == [
        (index, "1", "why"),
        (index, "2", "why"),
    ]
    assert sent.code == 7
    assert "1 written, 0 were there already, 1 refused again." in sent.err
    assert [one.error for one in dead] == ["mapper_parsing_exception"]
    assert {row["check"]: row["state"] for row in doctor.rows}["copies"] == "wrong"


@pytest.mark.slow
def test_old_months_go(run: Run, settings: Path, index_prefix: str, opensearch: Server) -> None:  # noqa: F811
    operator = config.load(settings).operator
    opensearch.ask("PUT", f"/{index_prefix}-events-{operator}-2020.01")

    gone = run("store", "retain", "-c", str(settings))

    assert (gone.code, gone.out) == (0, f"{index_prefix}-events-{operator}-2020.01\n")


def test_without_a_cluster_it_is_said_where_to_name_one(run: Run, node: Path) -> None:  # noqa: F811
    done = run("store", "init", "-c", str(node))

    assert done.code == 4
    assert "there is no cluster" in done.err
    assert "docs/opensearch.md" in done.err


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"url": "search.example:9200"}, "no https://name:port"),
        ({"url": f"{URL}, ftp://b"}, "no https://name:port"),
        (
            {"url": "http://search.example:9200", "user": "u", "secret_env": "P"},
            "a password needs https",
        ),
        ({"url": URL, "user": "u"}, "a user needs a password"),
        ({"url": URL, "secret_env": "P", "secret_file": "f"}, "names the password already"),
        ({"url": URL, "prefix": "CW"}, "begins no index"),
        ({"url": URL, "prefix": "*"}, "begins no index"),
        ({"url": URL, "months": 0}, "months"),
        ({"url": URL, "kind": "solr"}, "solr"),
        ({"user": "u"}, "url"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_with_its_key(said: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what) as refused:
        config.parse({"cluster": said})

    assert "cluster" in refused.value.where


def test_several_nodes_of_a_cluster_are_named_with_a_comma() -> None:
    said = config.parse({"cluster": {"url": f"{URL}, https://b.example:9200"}}).cluster

    assert said is not None
    assert said.urls == (URL, "https://b.example:9200")


def test_a_password_that_is_not_there_is_said(tmp_path: Path) -> None:
    file = tmp_path / "password"
    named = config.Cluster(url=URL, user="u", secret_file=str(file))

    for cluster in (named, config.Cluster(url=URL, user="u", secret_env="NO_SUCH")):
        with pytest.raises(ConfigError):
            password_of(cluster, {})
    file.write_text("hunter2\n")

    assert password_of(named, {}) == "hunter2"
    assert password_of(config.Cluster(url=URL), {}) == ""


def test_how_it_goes_is_said_in_words() -> None:
    now = now_utc()
    told: Callable[..., tuple[bool, str]] = lambda **said: in_words(  # noqa: E731
        State(version="opensearch 2.19.4", said=now, **said), now
    )

    assert in_words(None, now) == (False, "nothing was copied yet")
    assert told() == (True, "opensearch 2.19.4, copied 0 s ago")
    assert told(trouble="429 busy", since=now, findings_behind=1_001) == (
        False,
        f"takes nothing since {now:%Y-%m-%d %H:%M}Z: 429 busy; more than 1,000 findings wait",
    )
    assert told(dead=3) == (
        False,
        "opensearch 2.19.4, copied 0 s ago; 3 documents were refused",
    )
