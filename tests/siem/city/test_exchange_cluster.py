"""The exchange on a real OpenSearch: the same tests as on the file, as far as the home matters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from siem.city.cluster import Names
from siem.store.protocol_cluster import Cluster
from tests.opensearch import Server
from tests.siem.city import test_exchange as exchange
from tests.siem.city import test_samples as samples
from tests.siem.city.city import NOW, Hub, Node
from tests.siem.city.homes import a_cluster, emptied

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(opensearch: Server) -> Iterator[tuple[Cluster, Names]]:
    with a_cluster(opensearch, "opensearch") as found:
        yield found


@pytest.fixture
def hub(cluster: tuple[Cluster, Names], tmp_path: Path) -> Iterator[Hub]:
    with emptied(*cluster) as home:
        yield Hub(tmp_path, NOW, home)


@pytest.fixture
def node(hub: Hub) -> Node:
    return hub.enrolled("op-grid")


for _name in (
    "what_is_withdrawn_is_gone_and_never_comes_back",
    "a_share_past_its_time_is_withdrawn_by_the_hub_and_a_newer_one_may_come",
    "an_operator_can_compare_what_the_hub_holds_with_its_ledger",
    "a_hub_that_is_overtaken_while_it_takes_does_not_acknowledge",
):
    globals()[f"test_{_name}"] = getattr(exchange, f"test_{_name}")

for _name in (
    "two_operators_who_use_one_id_take_back_their_own",
    "what_is_taken_back_while_it_is_passed_on_goes_to_nobody_else",
    "a_letter_that_is_blanked_keeps_its_number_and_says_nothing",
    "who_does_not_say_that_it_understands_samples_gets_none_until_it_does",
):
    globals()[f"test_{_name}"] = getattr(samples, f"test_{_name}")
