"""What a run leaves behind and what it shows: its folder, its numbers, its terminal."""
