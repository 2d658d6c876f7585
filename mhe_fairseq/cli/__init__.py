"""The `mhe` command."""
