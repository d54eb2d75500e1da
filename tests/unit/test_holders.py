"""Who keeps what was uploaded, for how long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.ids import Ulids
from bitinglip.models.holders import gateway_name, is_gateway, is_kept_elsewhere, is_over
from bitinglip.models.state import Holding, Revision, Status

GATEWAY = gateway_name(Ulids()())
NODES = ("a", "b", "c", "gateway-1")
STATUSES: tuple[Status, ...] = ("absent", "wanted", "fetching", "stored", "failed", "stopped", "removing")
holdings = st.dictionaries(st.sampled_from(NODES), st.sampled_from(STATUSES))


def revision(statuses: dict[str, Status]) -> Revision:
    return Revision("lab/tuned", "0" * 40, holdings={name: Holding(name, each) for name, each in statuses.items()})


def test_a_gateways_name_is_no_nodes() -> None:
    assert is_gateway(GATEWAY)
    assert not any(is_gateway(name) for name in (*NODES, "gateway", "rig-1", GATEWAY + "0"))


@given(holdings)
def test_a_gateway_keeps_it_until_a_node_has_it_and_none_waits(statuses: dict[str, Status]) -> None:
    waiting = [each for each in statuses.values() if each in {"wanted", "fetching", "failed"}]
    over = is_over(revision({**statuses, GATEWAY: "stored"}))
    assert over == ("stored" in statuses.values() and not waiting)


@given(st.sets(st.sampled_from(NODES), min_size=1), st.lists(st.sets(st.sampled_from(NODES)), max_size=5))
def test_nodes_that_make_room_at_once_never_drop_all_of_it(have: set[str], rounds: list[set[str]]) -> None:
    for need_room in rounds:
        seen = revision({name: "stored" if name in have else "absent" for name in (*NODES, GATEWAY)})
        have = have - {name for name in need_room & have if is_kept_elsewhere(seen, name)}
        assert have


@given(st.sets(st.sampled_from(NODES), min_size=2))
def test_all_but_one_may_drop_it(have: set[str]) -> None:
    seen = revision(dict.fromkeys(have, "stored"))
    assert sum(is_kept_elsewhere(seen, name) for name in have) == len(have) - 1
