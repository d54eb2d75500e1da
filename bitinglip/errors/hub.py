"""What a hub of models, or a model's repository, can be refused for; each error says whose turn it is by its branch."""

from __future__ import annotations

from dataclasses import dataclass

from bitinglip.errors.denied import Denied
from bitinglip.errors.rejected import Rejected
from bitinglip.errors.unavailable import Unavailable


@dataclass(eq=False, kw_only=True)
class UnsafeRepository(Rejected):
    """A repository names a file whose place would not be safe."""

    code, status = "unsafe_repository", 422
    template = "The repository {reference} names a file {path!r}, which has no place in its folder."
    remedy = "Nothing of it is fetched: no honest repository has such names. Use another one."
    reference: str
    path: str


@dataclass(eq=False, kw_only=True)
class OnlyPickles(Rejected):
    """A repository has its weights in pickles alone."""

    code, status = "only_pickles", 422
    template = "{reference} has weights in pickles alone ({path}), which can run code when they are loaded."
    remedy = (
        "Name a revision that has safetensors, as the hub's converter offers them (`NAME@refs/pr/NUMBER`), or convert "
        "a folder with `save_pretrained` and import that. If you trust them: name the model in `worker.trust_pickles`."
    )
    reference: str
    path: str


@dataclass(eq=False, kw_only=True)
class NothingToLoad(Rejected):
    """A repository has nothing that an engine could load."""

    code, status = "nothing_to_load", 422
    template = "{reference} has nothing that an engine loads: {problem}."
    remedy = "Name a repository with a config.json or model_index.json, and weights as safetensors files."
    reference: str
    problem: str


@dataclass(eq=False, kw_only=True)
class BrokenModel(Rejected):
    """A file that tells what a model is cannot be read."""

    code, status = "broken_model", 422
    template = "{reference}: its file {path} cannot be read: {problem}."
    remedy = "Use another revision of the model, or tell its owner."
    reference: str
    path: str
    problem: str


@dataclass(eq=False, kw_only=True)
class ModelNotOnHub(Rejected):
    """The hub knows no model of this name, or shows it to others alone."""

    code, status = "model_not_on_hub", 404
    template = "The hub {endpoint} has no model {name!r}."
    remedy = (
        "Look at the name; `bitinglip model search TEXT` finds models. If it is private, set HF_TOKEN where the "
        "gateway and the nodes run."
    )
    name: str
    endpoint: str


@dataclass(eq=False, kw_only=True)
class RevisionNotOnHub(Rejected):
    """The model has no such branch, tag or commit on the hub."""

    code, status = "revision_not_on_hub", 404
    template = "The model {name} has no revision {revision!r} on the hub."
    remedy = "Name a branch, a tag or a commit of its page on the hub; without one, `main` is meant."
    name: str
    revision: str


@dataclass(eq=False, kw_only=True)
class HubOffline(Rejected):
    """It was asked for something of the hub, which is not to be asked."""

    code, status = "hub_offline", 409
    template = "The hub is not asked: {variable} is set."
    remedy = "What is on the nodes works as before. Import a folder, or unset {variable} to fetch from the hub again."
    variable: str


@dataclass(eq=False, kw_only=True)
class ModelGated(Denied):
    """The model's owner must let one in, and has not."""

    code = "model_gated"
    template = "The model {name} is gated: {problem}."
    remedy = (
        "Accept its terms on its page on the hub, with the account that the token is of, and set HF_TOKEN to the token "
        "where the gateway and the nodes run."
    )
    name: str
    problem: str


@dataclass(eq=False, kw_only=True)
class HubTokenRefused(Denied):
    """The hub does not know the token."""

    code, status = "hub_token_refused", 401
    template = "The hub {endpoint} refuses the token in HF_TOKEN."
    remedy = "Set HF_TOKEN to a token that is valid, or unset it for models that are open to all."
    endpoint: str


@dataclass(eq=False, kw_only=True)
class HubUnreachable(Unavailable):
    """The hub does not answer, or not as it should."""

    code = "hub_unreachable"
    template = "The hub {endpoint} cannot be reached: {problem}."
    remedy = (
        "What is on the nodes works as before. Look at the network, at HF_ENDPOINT or `models.endpoint`, and try again "
        "later; a folder can be imported without the hub."
    )
    endpoint: str
    problem: str
    retry_after_s: int = 30
