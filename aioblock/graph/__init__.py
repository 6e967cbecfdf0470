"""Layer 3: how nodes are wired: opening, permissions, drain, and the user's backend."""
