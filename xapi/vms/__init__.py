"""Virtual machines: what their messages do, from a record to a domain and back."""
