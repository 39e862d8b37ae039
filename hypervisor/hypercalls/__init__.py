"""What guests may ask for, by group, named as Xen's public headers name them; `table` joins the groups."""
