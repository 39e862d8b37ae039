"""The API reference, written from the schema; see `python -m xapi.reference --help`."""
