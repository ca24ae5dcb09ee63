"""Where things lie: schemas, shards, manifests, SQL views. No torch, no ray."""
