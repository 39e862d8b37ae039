"""The behaviour of explicit messages, one module a class; `xapi.registry` imports them all."""
