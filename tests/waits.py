"""Operators after which the host has to wait for an accelerator, found without one."""

from scripts.gpu.waits import Waits

__all__ = ["Waits"]
