"""What can go wrong, as types. Each message names the thing at fault and what would be accepted."""


class LevelheadError(Exception):
    """Base of every error that levelhead raises on purpose."""


class ConfigError(LevelheadError, ValueError):
    """A setting, a combination of settings, or a space that cannot work, raised before anything runs; or environments
    whose answers don't fit their spaces."""


class TrainingFault(LevelheadError):
    """Training stopped by itself; the message names the tensor, the iteration and the rank."""


class RankError(LevelheadError):
    """A process that others train with died or doesn't answer; the message names its rank where that can be known."""


class CheckpointError(LevelheadError):
    """A checkpoint that is missing, damaged or made for something else."""


class StorageError(LevelheadError):
    """Something could not be written, as on a full disk; the message names the path and the reason."""
