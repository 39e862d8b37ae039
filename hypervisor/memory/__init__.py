"""A domain's memory: the mapping, which frames it holds, and whose they are."""
