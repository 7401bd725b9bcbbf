"""Pages to read: one scan, or a group, as one self-contained HTML file each."""
