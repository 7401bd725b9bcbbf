"""A node beside a PACS: receives CT series, segments them, sends the results back. Extra ``pacs``."""
