"""The durable control plane: store, admission, applier, reconcile loop, cost. Never imports Ray."""
