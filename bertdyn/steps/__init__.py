"""One function a step: the public API, used by entrypoints, sweeps and notebooks."""
