"""Lists of requests in files: read and checked line by line, run in batches, continued where they were broken off."""
