"""The benchmark: a fixed topology under load, and what the machine itself can do, measured in the same run."""
