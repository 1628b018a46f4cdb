"""What a run will cost, before it starts: memory by part, steps, disk, time; and the micro batch that fits."""
