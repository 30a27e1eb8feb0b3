"""The page on which people search: served to this machine's browser alone."""
