"""What the terminal shows: runs, plans, what measured runs teach."""
