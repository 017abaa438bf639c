"""The only door to DeepSpeed's engine and to ZeRO's partitioning."""
