"""The exception that means: the user's input is wrong, and here is what to change."""


class InputError(ValueError):
    """Raised at the door, before any work is done.

    Its message is a single line that names the field or file, the value found there, and what is
    accepted. The commands print it without a traceback and exit with status 2.
    """


class NoArtifact(InputError):
    """A run has no such artifact, which may be as it should be: what a run writes depends on its options."""
