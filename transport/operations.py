"""What operators ask of every service: is it alive, is it ready, what are its figures."""

from collections.abc import Awaitable, Callable

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class Readiness(msgspec.Struct, frozen=True):
    """Whether a service can do its work now; each check says "ok" or what is wrong and what to do."""

    ready: bool
    checks: dict[str, str]


def routes(metrics: CollectorRegistry, readiness: Callable[[], Awaitable[Readiness]]) -> list[Route]:
    """`/health/live`, `/health/ready` (200 or 503) and `/metrics` (Prometheus text format)."""

    async def live(_request: Request) -> Response:
        return Response(b'{"alive":true}', media_type="application/json")

    async def ready(_request: Request) -> Response:
        state = await readiness()
        return Response(msgspec.json.encode(state), 200 if state.ready else 503, media_type="application/json")

    async def figures(_request: Request) -> Response:
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    return [Route("/health/live", live), Route("/health/ready", ready), Route("/metrics", figures)]
