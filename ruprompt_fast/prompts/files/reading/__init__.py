"""Reading files that may come from anybody: bounded, without mapped memory, and without running anything of theirs."""
