"""The serving half: Services become Revisions behind Routes; the gateway holds, limits and forwards; KPA scales."""
