"""The behaviour of explicit messages, one module a class; `xapi.calls.registry` imports them all."""
