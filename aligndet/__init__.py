"""Aligning Pre-training and Fine-tuning in Object Detection: box-domain pre-training of any detector of the house."""

from aligndet import released  # noqa: F401  registers its layout
