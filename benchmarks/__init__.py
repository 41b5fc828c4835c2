"""Benchmarks and studies: each module here is a program that answers one question (README.md)."""
