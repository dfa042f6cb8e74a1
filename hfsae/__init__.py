"""Sparse autoencoders as drop-in modules for HuggingFace models."""

__version__ = "0.1.0"
