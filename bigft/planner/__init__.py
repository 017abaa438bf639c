"""What a run will need and how long it will take, by arithmetic alone.

Nothing here loads torch, a weight or a row of data: `config.json`, the settings and the DeepSpeed
JSON go in, bytes and seconds come out. What was measured on a machine comes in as numbers.
"""
