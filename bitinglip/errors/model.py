"""What can be refused about models of this cluster, and names for them; what the hub refuses is in `hub.py`."""

from __future__ import annotations

from dataclasses import dataclass

from bitinglip.errors.rejected import Rejected


@dataclass(eq=False, kw_only=True)
class ModelMissing(Rejected):
    """Nobody has registered, described or asked for a model of this name."""

    code, status = "model_missing", 404
    template = "Nothing is known of the model {reference}."
    remedy = (
        "Look at the name: `bitinglip model list`, `bitinglip model search`; `bitinglip model download` fetches it."
    )
    reference: str


@dataclass(eq=False, kw_only=True)
class ModelDoesNotFit(Rejected):
    """No node can run the model as it is, or has room for it."""

    code, status = "model_does_not_fit", 409
    template = "{reference} has no place here: {problem}. Instead: {instead}."
    remedy = "Do what is said, or name the nodes that are to have it all the same (`nodes`, `--node`)."
    reference: str
    problem: str
    instead: str


@dataclass(eq=False, kw_only=True)
class NoNodeOnline(Rejected):
    """All nodes that are online are to do something, and none is."""

    code, status = "no_node_online", 409
    template = "No node is online."
    remedy = "Start one (`bitinglip node`), or name a node: it finds the wish when it is back."


@dataclass(eq=False, kw_only=True)
class ModelKindMismatch(Rejected):
    """The model is for other tasks than this one."""

    code, status = "model_kind_mismatch", 422
    template = "model: {model!r} serves {kinds}, and not {kind!r}."
    remedy = "Name a model for this kind: `bitinglip model search --kind KIND` finds some."
    model: str
    kind: str
    kinds: str


@dataclass(eq=False, kw_only=True)
class ModelNotFetched(Rejected):
    """The nodes that were to fetch the task's model could not, and try no more by themselves."""

    code, status = "model_not_fetched", 409
    template = (
        "model: {node_id} could not fetch {model!r}: {problem}. To try again: `bitinglip model download {model}`."
    )
    remedy = (
        "See to what is said (`bitinglip model show MODEL` has all of it), have it fetched, and send the task again."
    )
    model: str
    node_id: str
    problem: str


@dataclass(eq=False, kw_only=True)
class AliasNotFound(Rejected):
    """No alias of this name stands for a model."""

    code, status = "alias_not_found", 404
    template = "There is no alias {alias}."
    remedy = "Look at the name; `bitinglip model alias` lists the aliases."
    alias: str


@dataclass(eq=False, kw_only=True)
class AliasTaken(Rejected):
    """A model is called as the alias should be."""

    code, status = "alias_taken", 409
    template = "{alias} is the name of a model, so it cannot stand for another one."
    remedy = "Take another name."
    alias: str


@dataclass(eq=False, kw_only=True)
class NothingBefore(Rejected):
    """An alias is to be set back, and has stood for one model only."""

    code, status = "nothing_before", 409
    template = "The alias {alias} has stood for nothing else before."
    remedy = "Set it to what it is to stand for: `bitinglip model alias NAME MODEL`."
    alias: str
