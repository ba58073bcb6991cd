"""Runs with all their settings, by name: `--config=lm:small`, `--config=codec:32khz`."""
