"""Explaining a data set: its batches, the store that holds their results, and the files that models and inputs come from."""
