"""The `hsm-endorser` command: wires the rooms together, and is the only place that reads arguments."""
