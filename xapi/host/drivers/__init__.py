"""The types of storage repositories: a module each, with what it says of itself and what it does."""
