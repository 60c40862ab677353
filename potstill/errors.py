"""Every error that potstill raises on purpose, and the exit code it becomes.

    PotstillError
    ├── CheckError            exit 1: the work ran and a check said no
    │   ├── ParityError         an exported file does not answer like its checkpoint
    │   ├── TamperedError       a file of a bundle is not the one its manifest names
    │   └── TrainingError       training went wrong in a way that must not be published
    ├── UsageError            exit 2: what was asked cannot be done as it was asked
    │   ├── RecipeError         a recipe or a setting is not valid
    │   ├── DataError           the data set is missing, empty or has other columns
    │   │   └── AbsentError       it has no such split, or no labels
    │   ├── CheckpointError     a teacher or student cannot be loaded or cut
    │   ├── BundleError         a folder is not a bundle, or not one for this
    │   └── OutputError         the output folder is in the way
    └── MissingError          exit 3: this machine lacks something
        ├── DiskError           the disk is full
        └── MissingExtraError   an optional dependency is not installed

A message says what was wrong with the value shown, what was expected, and what to do.
"""


class PotstillError(Exception):
    """Base of all errors that potstill raises on purpose."""

    exit_code = 1


class CheckError(PotstillError):
    """The work ran and a check said no."""

    exit_code = 1


class ParityError(CheckError):
    """An exported file does not answer like the checkpoint it came from."""


class TamperedError(CheckError):
    """A file of a bundle is not the one that its manifest names."""


class TrainingError(CheckError):
    """Training went wrong in a way that must not be published."""


class UsageError(PotstillError):
    """What was asked cannot be done as it was asked."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe or a setting is not valid; the message lists every fault."""


class DataError(UsageError):
    """The data set is missing, empty, or has other columns than were named."""


class AbsentError(DataError):
    """The data set has no such split, or no labels; what does not need them goes on without."""


class CheckpointError(UsageError):
    """A teacher or student cannot be loaded, or cannot be cut as asked."""


class BundleError(UsageError):
    """A folder is not a bundle, or not one that can do what was asked."""


class OutputError(UsageError):
    """The output folder is in the way."""


class MissingError(PotstillError):
    """This machine lacks something that the work needs."""

    exit_code = 3


class DiskError(MissingError):
    """The disk takes no more: it is full, or a quota is."""


class MissingExtraError(MissingError):
    """An optional dependency is not installed."""


class OtherCpuWarning(UserWarning):
    """A file was made for a CPU of another kind than this one; it is slower here, or worse."""
