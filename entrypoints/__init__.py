"""The commands: parse, call one step, record."""
