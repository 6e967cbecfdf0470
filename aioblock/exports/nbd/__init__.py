"""The NBD server: many exports, many connections, one event loop."""
