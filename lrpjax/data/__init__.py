"""Explaining a data set: its batches, the store of their results, the files of models and inputs."""
