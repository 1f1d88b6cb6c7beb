"""What can be read off a layer: probes, their targets, controls and baselines."""
