"""`settle gateway`: passes calls on to AI providers, and charges each one."""

from __future__ import annotations

from collections.abc import Mapping

from domain.payments.x402 import TOP_UP_PATH
from gateway.ingest import ingest_routes
from gateway.policy import GatewayPolicy, RateLimits
from gateway.process import GatewayOptions, run_gateway
from gateway.upstreams_file import load_upstreams, upstream_keys
from settings import Settings


def gateway_options(settings: Settings, variables: Mapping[str, str]) -> GatewayOptions:
    """What the process is made of. Raises `ConfigurationError`."""
    upstreams = load_upstreams(settings.require_upstreams_file())
    return GatewayOptions(
        database_url=settings.require_database_url(),
        host=settings.gateway_host,
        port=settings.gateway_port,
        connections_max=settings.gateway_max_connections,
        policy=GatewayPolicy(
            markup_factor=settings.user_price_markup_factor,
            grace_credits=settings.grace_credits,
            lease_seconds=settings.hold_lease_seconds,
            rate_limits=RateLimits(
                chat=settings.rate_limit_chat_per_account,
                embeddings=settings.rate_limit_embeddings_per_account,
                images=settings.rate_limit_images_per_account,
                audio=settings.rate_limit_audio_per_account,
            ),
            output_tokens_assumed=settings.output_tokens_assumed,
            unpriced_hold_credits=settings.unpriced_hold_credits,
            clamps_output=settings.clamp_output_tokens,
            read_timeout_seconds=settings.upstream_read_timeout_seconds,
            top_up_url=f"{settings.api_url}{TOP_UP_PATH}" if settings.api_url else None,
        ),
        upstreams=upstreams,
        api_keys=upstream_keys(upstreams.upstreams, variables),
        more_routes=ingest_routes(
            settings.billing_ingest_secret,
            markup_factor=settings.user_price_markup_factor,
            overrides=upstreams.prices,
        ),
    )


async def gateway(settings: Settings, variables: Mapping[str, str]) -> None:
    """Serve until SIGTERM. Raises `SettleError`."""
    await run_gateway(gateway_options(settings, variables))
