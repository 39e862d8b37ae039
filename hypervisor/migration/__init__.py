"""A domain's state outside of the domain: saved to a stream, restored from it, copied live, cloned."""
