"""Layer 1: the nouns of the block layer: driver contract, nodes, limits, requests in flight, registry."""
