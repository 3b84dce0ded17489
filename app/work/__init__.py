"""What goes on in the background: runs, plans, downloads."""
