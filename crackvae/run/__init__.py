"""The commit protocol: what a run is, its shards, and how it is finished. No torch, no ray."""
