"""Raw rows turned into tokens once, kept in memory-mapped files, and read back by number."""
