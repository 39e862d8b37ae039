"""Storage repositories and their disks: what the messages of SR, PBD and VDI do."""
