"""The AdamW step of host memory in C++: built here, or on first use, and called through ctypes."""
