"""`/api/revocations` and `/api/users/{user}/revoke`."""

from dataclasses import asdict
from time import time

import structlog

from bridge.core.contracts.control import RevokeRequest
from bridge.core.contracts.operator.operation import NoQuery, Page
from bridge.core.contracts.operator.revocations import (
    LIST_REVOCATIONS,
    REVOKE_USER,
    RevocationFacts,
    RevocationsQuery,
)
from bridge.core.revocation import Revocation
from bridge.errors import StoreUnavailableError
from bridge.http.api.endpoint import Api, ApiProblem, ApiRequest
from bridge.http.api.paging import page_by_key
from bridge.http.api.users import user_of
from bridge.inbox.contract import Inbox
from bridge.logging import user_hash

log = structlog.get_logger(__name__)


def add_revocation_routes(api: Api, inbox: Inbox) -> None:
    """Serve the revocations in `inbox`, which passes new ones to all bridges."""

    async def list_revocations(
        request: ApiRequest[RevocationsQuery],
    ) -> Page[RevocationFacts]:
        if inbox.problem is not None:  # what is known may be incomplete
            raise StoreUnavailableError(inbox.description, inbox.problem)
        user = request.query.user
        found = inbox.all_revocations() if user is None else inbox.revocations(user)
        page, following = page_by_key(
            sorted(found, key=_key),
            key=_key,
            after=request.query.cursor,
            limit=request.query.limit,
        )
        return Page[RevocationFacts](items=list(map(_facts, page)), next=following)

    async def revoke(request: ApiRequest[NoQuery, RevokeRequest]) -> RevocationFacts:
        user = user_of(request.path["user"])
        try:
            revocation = request.body.revocation(user, now_s=time())
        except ValueError as exc:
            raise ApiProblem(422, str(exc), pointer="/until") from exc
        await inbox.revoke(revocation)
        log.info("operator.revoked", user=user_hash(user))
        return _facts(revocation)

    api.add(LIST_REVOCATIONS, list_revocations)
    api.add(REVOKE_USER, revoke)


def _facts(revocation: Revocation) -> RevocationFacts:
    return RevocationFacts(**asdict(revocation))


def _key(revocation: Revocation) -> str:
    # No user contains the separator. The hash keeps the cursor short.
    return f"{revocation.user}\0{revocation.digest}"
