"""Who has a revision: nodes, and gateways for as long as nodes need what was uploaded to these; pure."""

from __future__ import annotations

import re

from bitinglip.ids import ULID_PATTERN
from bitinglip.models.state import Revision

_GATEWAY = re.compile(f"gateway-{ULID_PATTERN}", re.IGNORECASE)


def gateway_name(ulid: str) -> str:
    """Return the name of a gateway among those who have models."""
    return f"gateway-{ulid.lower()}"


def is_gateway(node_id: str) -> bool:
    """Tell whether this is a gateway, which runs nothing: no node has such a name."""
    return _GATEWAY.fullmatch(node_id) is not None


def is_kept_elsewhere(revision: Revision, node_id: str) -> bool:
    """Tell whether another node is sure to keep a revision: of those that have it, the first one by name does.

    So two of them that need room at the same time never both drop what is on no hub.
    """
    holders = [
        each for each, holding in revision.holdings.items() if holding.status == "stored" and not is_gateway(each)
    ]
    return min(holders, default=node_id) < node_id


def is_over(revision: Revision) -> bool:
    """Tell whether an upload has come to where it was to: a node has it, and none that was asked to is without it."""
    on_nodes = [holding for node_id, holding in revision.holdings.items() if not is_gateway(node_id)]
    return any(each.status == "stored" for each in on_nodes) and not any(each.wanted for each in on_nodes)
