"""What can go wrong, each with the exit code that the command returns (DESIGN.md section 6).

Every message names the file or key, quotes what was found and says what to do. The command line prints it as one line on
stderr; a traceback appears only with ``--debug``.
"""


class PtychoError(Exception):
    """Base of every error that a user can cause or mend."""

    exit_code = 1


class SubmitError(PtychoError):
    """A job cannot be submitted as asked: a wrong option, or no queue to take it (exit code 2)."""

    exit_code = 2


class RecipeError(PtychoError, ValueError):
    """The recipe, or a value given in its place, is wrong (exit code 3)."""

    exit_code = 3


class DataError(PtychoError):
    """The input data cannot be used (exit code 4)."""

    exit_code = 4


class ScanShapeError(DataError):
    """A file does not know the shape of its scan, and nobody has said it."""

    def __init__(self, message: str, n_frames: int) -> None:
        super().__init__(message)
        self.n_frames = n_frames


class OutputError(PtychoError):
    """The results cannot be written (exit code 5)."""

    exit_code = 5


class OutOfMemoryError(PtychoError):
    """The run does not fit into memory (exit code 6)."""

    exit_code = 6


class DivergedError(PtychoError):
    """The reconstruction left the numbers behind (exit code 7)."""

    exit_code = 7


class Stopped(PtychoError):
    """The run was asked to stop, and goes on when it is started again (exit code 75, EX_TEMPFAIL)."""

    exit_code = 75
