"""The log and the audit trail: what a line says, and how it is written beside the reactor."""
