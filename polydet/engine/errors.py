"""What runs and their configs can be wrong in."""


class ConfigError(ValueError):
    """A config file or override that cannot be what its author meant."""


class RunError(RuntimeError):
    """A run that cannot begin or go on in its folder."""
