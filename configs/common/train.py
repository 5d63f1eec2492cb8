"""What every run has: where it writes, how long it trains, how it starts.  See docs/training.md for each key."""

from polydet.engine.settings import defaults

train = defaults()
