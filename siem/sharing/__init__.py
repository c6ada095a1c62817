"""What leaves an operator: policy, transforms, outbox, ledger, and the channel to the hub."""
