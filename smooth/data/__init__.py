"""The data path: what may be fetched, fetching it, and cached latents."""
