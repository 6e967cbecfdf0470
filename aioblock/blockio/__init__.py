"""Layer 2: the verbs of the block layer, one file a verb: the generic path of every request."""
