"""What configs can be wrong in."""


class ConfigError(ValueError):
    """A config file or override that cannot be what its author meant."""
