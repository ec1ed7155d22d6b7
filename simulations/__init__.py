"""Whole federations on one machine: scenarios, splits and engines around the same site and coordinator code."""
